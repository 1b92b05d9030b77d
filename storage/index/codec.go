package index

import (
	"bytes"
	"database/sql/driver"
	_ "embed"
	"fmt"

	"github.com/klauspost/compress/zstd"

	"nar-herder/narinfo"
)

// builtinDictionary is a zstd dictionary trained on narinfos: their field
// names, the printed form of signatures, and the names of the packages that
// others refer to most. TestTrainDictionary makes it anew.
//
//go:embed narinfo.dict
var builtinDictionary []byte

// builtinID is the id of the dictionary in the zstd frames and in the table
// dictionaries. A newer dictionary takes a new id: texts written with an older
// one are read with that.
const builtinID = 1

// uncompressed marks a text that is stored as it is.
const uncompressed = 0

// codec compresses texts for the database. A narinfo alone is too short to
// compress well; with a dictionary it comes to less than half.
type codec struct {
	encoder *zstd.Encoder
	decoder *zstd.Decoder
	// damaged are the ids of dictionaries that are not in the database as they were
	// written.
	damaged []int64
}

// openCodec reads the dictionaries of the database, and adds the built-in one
// where it is missing: a database explains itself, even to a later version
// whose built-in dictionary is another. Without add, the database is left as it is.
func openCodec(conn *connection, add bool) (*codec, error) {
	decoding := []zstd.DOption{
		// Decoding all of a text at once takes no goroutines, only a decoder
		// for each core.
		zstd.WithDecoderConcurrency(0),
		zstd.WithDecoderMaxMemory(narinfo.MaxSize),
	}
	c := new(codec)
	// Of a dictionary with the built-in one's id, the database's counts, unless it is
	// damaged.
	found := false
	var trained []byte
	err := conn.rows("SELECT id, content, checksum FROM dictionaries ORDER BY id", nil, func(row []driver.Value) (bool, error) {
		id, content := row[0].(int64), blob(row[1])
		found = found || id == builtinID
		sum, ok := row[2].(int64)
		if !ok || checksumOfDictionary(content) != sum {
			c.damaged = append(c.damaged, id)
			if id != builtinID || !(sum == checksumOfDictionary(builtinDictionary) || bytes.Equal(content, builtinDictionary)) {
				return true, nil // texts that were written with it can't be read
			}
			content = builtinDictionary
		}
		if id == builtinID {
			trained = content
		}
		decoding = append(decoding, zstd.WithDecoderDicts(content))
		return true, nil
	})
	if err != nil {
		return nil, err
	}
	if !found {
		trained = builtinDictionary
		decoding = append(decoding, zstd.WithDecoderDicts(builtinDictionary))
		if add {
			if err := conn.exec("INSERT INTO dictionaries VALUES (?, ?, ?) ON CONFLICT DO NOTHING",
				int64(builtinID), builtinDictionary, checksumOfDictionary(builtinDictionary)); err != nil {
				return nil, err
			}
		}
	}
	if c.decoder, err = zstd.NewReader(nil, decoding...); err != nil {
		return nil, err
	}
	// zstd's own checksum would cover neither the hash nor texts that are stored as they
	// are; see checksumOf.
	encoderOptions := []zstd.EOption{zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderCRC(false)}
	if trained != nil {
		encoderOptions = append(encoderOptions, zstd.WithEncoderDict(trained))
	}
	c.encoder, err = zstd.NewWriter(nil, encoderOptions...)
	if err != nil {
		c.decoder.Close()
		return nil, err
	}
	return c, nil
}

// compress returns the text as the database keeps it, and the dictionary's id.
func (c *codec) compress(text []byte) (dictionary int64, compressed []byte) {
	compressed = c.encoder.EncodeAll(text, make([]byte, 0, len(text)/2))
	if len(compressed) >= len(text) {
		return uncompressed, text
	}
	return builtinID, compressed
}

// decompress is the inverse of compress. The result is the caller's.
func (c *codec) decompress(dictionary int64, stored []byte) ([]byte, error) {
	if dictionary == uncompressed {
		return stored, nil
	}
	text, err := c.decoder.DecodeAll(stored, nil)
	if err != nil {
		return nil, fmt.Errorf("decompress a narinfo with dictionary %d: %w", dictionary, err)
	}
	return text, nil
}

func (c *codec) close() {
	c.decoder.Close()
	// An encoder without a writer has nothing to fail at.
	_ = c.encoder.Close()
}
