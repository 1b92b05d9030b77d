package index

import (
	"bytes"
	"database/sql/driver"
	_ "embed"
	"fmt"

	"github.com/klauspost/compress/zstd"

	"nar-herder/narinfo"
)

// builtinDictionary is a zstd dictionary trained on narinfos: their field names,
// signatures, and the names of the most referenced packages. TestTrainDictionary creates
// it.
//
//go:embed narinfo.dict
var builtinDictionary []byte

// builtinID is the id of the dictionary in zstd frames and in the table dictionaries. A
// newer dictionary needs a new id, since older texts need the older dictionary.
const builtinID = 1

// uncompressed marks a text that is stored uncompressed.
const uncompressed = 0

// codec compresses texts for the database. A single narinfo compresses badly; with a
// dictionary, it shrinks to less than half.
type codec struct {
	encoder *zstd.Encoder
	decoder *zstd.Decoder
	// damaged are the ids of damaged dictionaries in the database.
	damaged []int64
}

// openCodec reads the dictionaries of the database. If add is true, it adds the built-in
// one if it is missing, so that later versions with another built-in dictionary can read
// the database.
func openCodec(conn *connection, add bool) (*codec, error) {
	decoding := []zstd.DOption{
		// Decoding a whole text at once needs no goroutines, only a decoder per core.
		zstd.WithDecoderConcurrency(0),
		zstd.WithDecoderMaxMemory(narinfo.MaxSize),
	}
	c := new(codec)
	// A dictionary in the database has precedence over the built-in one with the same id,
	// unless it is damaged.
	found := false
	var trained []byte
	err := conn.rows("SELECT id, content, checksum FROM dictionaries ORDER BY id", nil, func(row []driver.Value) (bool, error) {
		id, content := row[0].(int64), blob(row[1])
		found = found || id == builtinID
		sum, ok := row[2].(int64)
		if !ok || checksumOfDictionary(content) != sum {
			c.damaged = append(c.damaged, id)
			if id != builtinID || !(sum == checksumOfDictionary(builtinDictionary) || bytes.Equal(content, builtinDictionary)) {
				return true, nil // its texts can't be read
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
	// zstd's checksum would cover neither the hash nor uncompressed texts; see checksumOf.
	// The window covers the dictionary and usual texts. The default, 4 MiB, is allocated per
	// core even for the shortest text.
	encoderOptions := []zstd.EOption{zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderCRC(false), zstd.WithWindowSize(256 << 10)}
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

// compress returns the compressed text and the id of its dictionary.
func (c *codec) compress(text []byte) (dictionary int64, compressed []byte) {
	compressed = c.encoder.EncodeAll(text, make([]byte, 0, len(text)/2))
	if len(compressed) >= len(text) {
		return uncompressed, text
	}
	return builtinID, compressed
}

// decompress is the inverse of compress. The caller owns the result.
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
	// Closing an encoder without a writer can't fail.
	_ = c.encoder.Close()
}
