package httpapi

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"nar-herder/compression"
	"nar-herder/narinfo"
	"nar-herder/storage"
	"nar-herder/storage/bytestore"
	"nar-herder/storage/index"
)

// fakeItems are items with failures that a test chooses. Unset functions return
// storage.ErrNotFound.
type fakeItems struct {
	text   func(narinfo.PathHash) ([]byte, error)
	item   func(narinfo.PathHash) (*storage.Item, error)
	open   func(item *storage.Item, n int, offset, length int64) (io.ReadCloser, bytestore.Info, error)
	totals func() (index.Totals, error)
}

func (f *fakeItems) TextUntil(_ context.Context, hash narinfo.PathHash) ([]byte, time.Time, error) {
	if f.text == nil {
		return nil, time.Time{}, storage.ErrNotFound
	}
	text, err := f.text(hash)
	return text, time.Time{}, err
}

func (f *fakeItems) Item(_ context.Context, hash narinfo.PathHash) (*storage.Item, error) {
	if f.item == nil {
		return nil, storage.ErrNotFound
	}
	return f.item(hash)
}

func (f *fakeItems) ItemsAt(ctx context.Context, hashes []narinfo.PathHash) ([]*storage.Item, error) {
	items := make([]*storage.Item, len(hashes))
	for i, hash := range hashes {
		item, err := f.Item(ctx, hash)
		if err != nil && !errors.Is(err, storage.ErrNotFound) {
			return nil, err
		}
		items[i] = item
	}
	return items, nil
}

func (f *fakeItems) OpenFile(_ context.Context, item *storage.Item, n int, offset, length int64) (io.ReadCloser, bytestore.Info, error) {
	if f.open == nil {
		return nil, bytestore.Info{}, storage.ErrNotStored
	}
	return f.open(item, n, offset, length)
}

func (f *fakeItems) LookFor(ctx context.Context, item *storage.Item, n int) error {
	reader, _, err := f.OpenFile(ctx, item, n, 0, 0)
	if err == nil {
		reader.Close()
	}
	return err
}

func (f *fakeItems) Concurrency() int { return 8 }

func (f *fakeItems) Totals(context.Context) (index.Totals, error) {
	if f.totals == nil {
		return index.Totals{}, nil
	}
	return f.totals()
}

// made is a store item made by a test: a flat fixed-output file in one compression. Its fields
// may be changed before use.
type made struct {
	path        narinfo.StorePath
	digest      string // of the content, in base32
	nar         []byte
	narHash     [sha256.Size]byte
	narSize     int64 // -1 leaves the field out
	compression string
	file        []byte // the compressed nar
	fileSize    int64
}

func make1(t testing.TB, name, content, how string) *made {
	t.Helper()
	sum := sha256.Sum256([]byte(content))
	path, err := narinfo.FixedOutputPath(name, sum)
	if err != nil {
		t.Fatal(err)
	}
	m := &made{path: path, digest: narinfo.EncodeBase32(sum[:]), nar: flatNar(content), compression: how}
	m.narHash, m.narSize = sha256.Sum256(m.nar), int64(len(m.nar))
	m.file = compress(t, how, m.nar)
	m.fileSize = int64(len(m.file))
	return m
}

func flatNar(content string) []byte {
	var nar []byte
	add := func(s string) {
		nar = binary.LittleEndian.AppendUint64(nar, uint64(len(s)))
		nar = append(nar, s...)
		nar = append(nar, make([]byte, (8-len(s)%8)%8)...)
	}
	for _, s := range []string{"nix-archive-1", "(", "type", "regular", "contents", content, ")"} {
		add(s)
	}
	return nar
}

func compress(t testing.TB, how string, nar []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	var w io.WriteCloser
	var err error
	switch how {
	case "none":
		return nar
	case "gzip":
		w = gzip.NewWriter(&out)
	case "zstd":
		w, err = zstd.NewWriter(&out, zstd.WithEncoderConcurrency(1))
	case "lzip":
		w, err = compression.NewWriter(how, 0, &out)
	default:
		t.Fatalf("no writer for %s", how)
	}
	if err == nil {
		_, err = w.Write(nar)
	}
	if err = errors.Join(err, w.Close()); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func (m *made) url() string { return "nar/" + m.compression + "/" + m.path.BaseName() }

func (m *made) text() []byte {
	text := fmt.Sprintf("StorePath: %s\nNarHash: sha256:%s\n", m.path, narinfo.EncodeBase32(m.narHash[:]))
	if m.narSize >= 0 {
		text += fmt.Sprintf("NarSize: %d\n", m.narSize)
	}
	return fmt.Appendf(nil, "%sReferences: \nURL: %s\nCompression: %s\nFileSize: %d\n", text, m.url(), m.compression, m.fileSize)
}

// item returns the item as the storage would.
func (m *made) item(t testing.TB) *storage.Item {
	t.Helper()
	item, err := storage.NewItem(&index.Item{Hash: m.path.Hash, Text: m.text(), Stored: 1})
	if err != nil {
		t.Fatal(err)
	}
	return item
}

// items returns the item as the only one, with its file in memory.
func (m *made) items(t testing.TB) *fakeItems {
	t.Helper()
	item := m.item(t)
	return &fakeItems{
		text: func(hash narinfo.PathHash) ([]byte, error) {
			if hash != m.path.Hash {
				return nil, storage.ErrNotFound
			}
			return item.Text, nil
		},
		item: func(hash narinfo.PathHash) (*storage.Item, error) {
			if hash != m.path.Hash {
				return nil, storage.ErrNotFound
			}
			return item, nil
		},
		open: func(_ *storage.Item, _ int, offset, _ int64) (io.ReadCloser, bytestore.Info, error) {
			return io.NopCloser(bytes.NewReader(m.file[offset:])), bytestore.Info{Size: m.fileSize, ModTime: time.Unix(1e9, 0)}, nil
		},
	}
}

// write writes narinfo and nar below a directory, as a publisher does, and returns the
// narinfo's name.
func (m *made) write(t testing.TB, dir string) string {
	t.Helper()
	nar := filepath.Join(dir, filepath.FromSlash(m.url()))
	name := filepath.Join(dir, m.path.Hash.String()+".narinfo")
	err := errors.Join(os.MkdirAll(filepath.Dir(nar), 0o755), os.WriteFile(nar, m.file, 0o644), os.WriteFile(name, m.text(), 0o644))
	if err != nil {
		t.Fatal(err)
	}
	return name
}
