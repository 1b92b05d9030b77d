package apply

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"nar-herder/narinfo"
	"nar-herder/storage"
	"nar-herder/storage/index"
)

// dropping is a mirror's storage with an item in three compressions, all of which are stored.
type dropping struct {
	*storage.Storage
	t    *testing.T
	full *narinfo.Narinfo
}

func newDropping(t *testing.T) *dropping {
	t.Helper()
	x, err := index.Open(t.Context(), filepath.Join(t.TempDir(), "index.db"), index.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := x.Close(); err != nil {
			t.Error(err)
		}
	})
	const base = "0123456789abcdfghijklmnpqrsvwxyz-a"
	text := fmt.Sprintf("StorePath: /gnu/store/%s\nNarHash: sha256:%s\nNarSize: 1\nReferences: \nSignature: 1;host;AAAA\n", base, strings.Repeat("0", 52))
	for _, kind := range []string{"gzip", "lzip", "zstd"} {
		text += fmt.Sprintf("URL: nar/%s/%s\nCompression: %[1]s\nFileSize: 10\n", kind, base)
	}
	d := &dropping{storage.New(x, nil, storage.Options{}), t, nil}
	d.full = d.parse([]byte(text))
	entry := x.Prepare(d.full)
	entry.AddedAt, entry.Stored, entry.Mirrored = time.Now(), 0b111, true
	if err := x.Update(t.Context(), func(tx *index.Tx) error { return tx.Put(entry, nil) }); err != nil {
		t.Fatal(err)
	}
	return d
}

func (d *dropping) parse(text []byte) *narinfo.Narinfo {
	d.t.Helper()
	n, err := narinfo.Parse(text)
	if err != nil {
		d.t.Fatal(err)
	}
	return n
}

// without returns the narinfo as a source announces it that has dropped files.
func (d *dropping) without(files uint64) *narinfo.Narinfo {
	d.t.Helper()
	return d.parse(d.full.WithoutFiles(files))
}

// apply applies an addition, and asserts the outcome and which files are dropped and stored.
func (d *dropping) apply(n *narinfo.Narinfo, want Sums, dropped, stored uint64) {
	d.t.Helper()
	sums, err := Changes(d.t.Context(), d.Storage, []Change{{At: time.Now(), Narinfo: n, Hash: n.StorePath.Hash}}, Options{})
	if err != nil || sums != want {
		d.t.Errorf("%+v, %v, want %+v", sums, err, want)
	}
	item, err := d.Item(d.t.Context(), d.full.StorePath.Hash)
	if err != nil || item.Dropped != dropped || item.Stored != stored || item.DropAfter.IsZero() != (stored&dropped == 0) {
		d.t.Errorf("dropped %b after %v, stored %b, %v; want %b, %b", item.Dropped, item.DropAfter, item.Stored, err, dropped, stored)
	}
}

func (d *dropping) drop(files uint64) {
	d.t.Helper()
	err := d.Index().Update(d.t.Context(), func(tx *index.Tx) error { return tx.SetDropped(d.full.StorePath.Hash, files, time.Now()) })
	if err != nil {
		d.t.Fatal(err)
	}
}

// TestSourceDrops: the mirrored instance drops files, which stay stored here for now.
func TestSourceDrops(t *testing.T) {
	t.Parallel()
	d := newDropping(t)
	d.apply(d.full, Sums{Known: 1}, 0, 0b111)
	d.apply(d.without(0b001), Sums{Updated: 1}, 0b001, 0b111)
	d.apply(d.without(0b001), Sums{Known: 1}, 0b001, 0b111)
	d.apply(d.without(0b011), Sums{Updated: 1}, 0b011, 0b111)
	if text, err := d.Text(t.Context(), d.full.StorePath.Hash); err != nil || string(text) != string(d.without(0b011).Text) {
		t.Errorf("%s, %v", text, err)
	}
}

// TestBothDrop: files that were dropped here stay dropped, unless none would be left.
func TestBothDrop(t *testing.T) {
	t.Parallel()
	d := newDropping(t)
	d.drop(0b100)
	d.apply(d.full, Sums{Known: 1}, 0b100, 0b111)
	d.apply(d.without(0b001), Sums{Updated: 1}, 0b101, 0b111)
	d.apply(d.without(0b011), Sums{Updated: 1}, 0b011, 0b111)
}

// TestOtherText: other texts than those without files replace the narinfo.
func TestOtherText(t *testing.T) {
	t.Parallel()
	d := newDropping(t)
	d.drop(0b100)
	signed := d.parse([]byte(strings.Replace(string(d.full.Text), "AAAA", "BBBB", 1)))
	d.apply(signed, Sums{Updated: 1}, 0b100, 0b111)
	// Without a file, and with another signature.
	d.apply(d.without(0b001), Sums{Updated: 1}, 0b010, 0b011)
	item, err := d.Item(t.Context(), d.full.StorePath.Hash)
	if err != nil || len(item.Narinfo.Files) != 2 {
		t.Errorf("%+v, %v", item, err)
	}
}

// TestWithdrawnDrops: an item that was removed at the source comes back without a file.
func TestWithdrawnDrops(t *testing.T) {
	t.Parallel()
	d := newDropping(t)
	removal := Change{At: time.Now(), Hash: d.full.StorePath.Hash, StorePath: d.full.StorePath.String()}
	if sums, err := Changes(t.Context(), d.Storage, []Change{removal}, Options{}); err != nil || sums.Withdrawn != 1 {
		t.Fatalf("%+v, %v", sums, err)
	}
	d.apply(d.without(0b001), Sums{Updated: 1}, 0b001, 0b111)
	if _, err := d.Text(t.Context(), d.full.StorePath.Hash); errors.Is(err, storage.ErrNotFound) {
		t.Errorf("it is still hidden: %v", err)
	}
}

// TestOfUpstream: an item that came from an upstream is that of the mirrored instance from then
// on: it is not evicted, and no upstream decides about it.
func TestOfUpstream(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		old, new string // signature
		want     Sums
	}{
		"same text":  {"AAAA", "AAAA", Sums{Known: 1}},
		"other text": {"AAAA", "BBBB", Sums{Updated: 1}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := newDropping(t)
			hash := d.full.StorePath.Hash
			err := d.Index().Update(t.Context(), func(tx *index.Tx) error {
				origin, err := tx.Origin("http://upstream.example")
				return errors.Join(err, tx.SetOrigin(hash, origin, time.Now()), tx.SetMirrored(hash, false))
			})
			if err != nil {
				t.Fatal(err)
			}
			d.apply(d.parse([]byte(strings.Replace(string(d.full.Text), test.old, test.new, 1))), test.want, 0, 0b111)
			item, err := d.Item(t.Context(), hash)
			if err != nil || item.Origin != 0 || !item.FreshUntil.IsZero() || !item.Mirrored || item.Narinfo.Signature() != "1;host;"+test.new {
				t.Errorf("%+v, %v", item, err)
			}
		})
	}
}
