package index

import (
	"bytes"
	"crypto/sha256"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"testing"

	"github.com/klauspost/compress/dict"
	"github.com/klauspost/compress/zstd"

	"nar-herder/narinfo"
)

func TestCodec(t *testing.T) {
	t.Parallel()
	c := testCodec(t)
	noise := make([]byte, narinfo.MaxSize)
	_, _ = rand.NewChaCha8([32]byte{7}).Read(noise)
	texts := map[string][]byte{
		"empty":             {},
		"one byte":          {'S'},
		"incompressible":    noise[:3000],
		"huge":              bytes.Repeat([]byte("nxrz38jzshzw0q3fqi3fqimjg1zr62r9-greet-1.0 "), narinfo.MaxSize/40)[:narinfo.MaxSize-100],
		"largest":           bytes.Repeat([]byte("x"), narinfo.MaxSize),
		"largest, noise":    noise,
		"largest but one":   bytes.Repeat([]byte("xy"), narinfo.MaxSize/2)[:narinfo.MaxSize-1],
		"like a zstd frame": {0x28, 0xb5, 0x2f, 0xfd, 0, 0, 0, 0},
	}
	for i, text := range sampleNarinfos(t, 50) {
		texts[strings.Repeat("sample ", 1+i%2)+string(rune('a'+i))] = text
	}
	for name, text := range texts {
		dictionary, stored := c.compress(bytes.Clone(text))
		if len(stored) > len(text) {
			t.Errorf("%s: %d bytes became %d", name, len(text), len(stored))
		}
		got, err := c.decompress(dictionary, stored)
		if err != nil || !bytes.Equal(got, text) {
			t.Errorf("%s: %d bytes became %d, %v", name, len(text), len(got), err)
		}
	}
}

// TestCodecBomb: a damaged or malicious text takes no more memory than a narinfo.
func TestCodecBomb(t *testing.T) {
	t.Parallel()
	c := testCodec(t)
	encoder, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer encoder.Close()
	bomb := encoder.EncodeAll(make([]byte, 64<<20), nil)
	if text, err := c.decompress(builtinID, bomb); err == nil || len(text) > narinfo.MaxSize {
		t.Errorf("a bomb of %d bytes became %d, %v", len(bomb), len(text), err)
	}
	for cut := range 40 {
		_, stored := c.compress(sampleNarinfos(t, 1)[0])
		if text, err := c.decompress(builtinID, stored[:cut]); err == nil && cut > 0 {
			t.Errorf("cut to %d bytes it became %q", cut, text)
		}
	}
}

// TestBuiltinDictionary: databases depend on the dictionary with this id. If its bytes
// change, use a new builtinID.
func TestBuiltinDictionary(t *testing.T) {
	t.Parallel()
	d, err := zstd.InspectDictionary(builtinDictionary)
	if err != nil || d.ID() != builtinID {
		t.Errorf("the id of the dictionary is not %d: %v", builtinID, err)
	}
}

// TestLargestNarinfo writes and reads a text of the maximum size.
func TestLargestNarinfo(t *testing.T) {
	t.Parallel()
	x := openTest(t)
	text := testNarinfo(1, 1, nil, 1).Text
	line := []byte("# " + strings.Repeat("comment ", 100) + "\n")
	for len(text)+len(line) <= narinfo.MaxSize {
		text = append(text, line...)
	}
	text = append(text, bytes.Repeat([]byte("#"), narinfo.MaxSize-len(text))...)
	n, err := narinfo.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	put(t, x, n)
	if got, err := x.Text(t.Context(), n.StorePath.Hash); err != nil || !bytes.Equal(got, text) {
		t.Errorf("%d bytes became %d, %v", len(text), len(got), err)
	}
}

// TestOtherDictionaries: a database with another dictionary than the program's can be read,
// with the dictionaries that it contains, and written.
func TestOtherDictionaries(t *testing.T) {
	t.Parallel()
	samples := sampleNarinfos(t, 300)
	for _, id := range []int64{builtinID, 7} {
		other, err := dict.BuildZstdDict(samples[:200], dict.Options{
			MaxDictSize: 8 << 10, HashBytes: 6, ZstdDictID: uint32(id), ZstdLevel: zstd.SpeedFastest,
		})
		if err != nil {
			t.Fatal(err)
		}
		if sha256.Sum256(other) == sha256.Sum256(builtinDictionary) {
			t.Fatal("the other dictionary is the built-in one")
		}
		encoder, err := zstd.NewWriter(nil, zstd.WithEncoderDict(other))
		if err != nil {
			t.Fatal(err)
		}
		defer encoder.Close()

		path := filepath.Join(t.TempDir(), "db")
		x, err := Open(t.Context(), path, Options{})
		if err != nil {
			t.Fatal(err)
		}
		if n, err := x.writer.integer("SELECT count(*) FROM dictionaries"); err != nil || n != 1 {
			t.Errorf("%d dictionaries in a new database, %v", n, err)
		}
		parsed := make([]*narinfo.Narinfo, 2)
		for i := range parsed {
			if parsed[i], err = narinfo.Parse(samples[i]); err != nil {
				t.Fatal(err)
			}
		}
		put(t, x, parsed[0])
		update(t, x, func(tx *Tx) error {
			// As another version would write it.
			if err := tx.conn.exec("INSERT OR REPLACE INTO dictionaries VALUES (?, ?, ?)", id, other, checksumOfDictionary(other)); err != nil {
				return err
			}
			return tx.conn.exec("UPDATE narinfos SET dictionary = ?, text = ?", id, encoder.EncodeAll(samples[0], nil))
		})
		if err := x.Close(); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			x := openAt(t, path)
			put(t, x, parsed[1])
			for i, n := range parsed {
				if text, err := x.Text(t.Context(), n.StorePath.Hash); err != nil || !bytes.Equal(text, samples[i]) {
					t.Errorf("dictionary %d, item %d: %q, %v", id, i, text, err)
				}
			}
		}
	}
}
