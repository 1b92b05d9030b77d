package storage

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"

	"nar-herder/narinfo"
	"nar-herder/storage/bytestore"
)

// Admit is the gate for narinfos: every text that comes from outside, be it from a
// file, another instance or another database, is read by it before anything else is
// done with it. It returns a narinfo that is fit to be added, or the reason why the
// text isn't one. Like [narinfo.Parse], it keeps the text.
func Admit(text []byte) (*narinfo.Narinfo, error) {
	n := new(narinfo.Narinfo)
	if err := AdmitInto(n, text); err != nil {
		return nil, err
	}
	return n, nil
}

// AdmitInto is Admit in the way of [narinfo.ParseInto].
func AdmitInto(n *narinfo.Narinfo, text []byte) error {
	if err := narinfo.ParseInto(n, text); err != nil {
		return err
	}
	return CheckNarinfo(n)
}

// CheckNarinfo is nil for a narinfo that may be added. Each of its URLs must be that of a nar of
// this very item, as its files are stored and deleted under the names that the URLs
// give. Only a URL with a scheme may lead anywhere: nothing is stored under that.
func CheckNarinfo(n *narinfo.Narinfo) error {
	own, elsewhere := false, ""
	for _, file := range n.Files {
		name, err := file.Path()
		switch {
		case errors.Is(err, narinfo.ErrScheme):
			elsewhere = file.URL
			continue
		case err != nil:
			return err
		case !IsNarName(name):
			return fmt.Errorf("URL %.200q: not the URL of a nar: want nar/[TYPE/]HASH-NAME", file.URL)
		case !n.StorePath.IsBaseName(path.Base(name)):
			return fmt.Errorf("its nar %.200q is named after another item: it must be %s", name, n.StorePath.BaseName())
		}
		own = true
	}
	if !own {
		return fmt.Errorf("it names no file that could be in a storage: URL %.200q has a scheme, and it has no other", elsewhere)
	}
	return nil
}

// IsNarName says whether the name is one that a nar of an item can have: nar/HASH-NAME or
// nar/COMPRESSION/HASH-NAME.
func IsNarName(name string) bool {
	below, ok := strings.CutPrefix(name, "nar/")
	if _, named := findHash(below); !ok || !named || !fs.ValidPath(name) {
		return false
	}
	compression, base, nested := strings.Cut(below, "/")
	if !nested {
		return true
	}
	// A directory named like an item would keep that item's uncompressed nar out.
	_, named := findHash(compression)
	return !named && !strings.Contains(base, "/")
}

// NarName is where the file of an item with that hash is stored; "" where that is not in
// this storage, or not for this item to say.
func NarName(file narinfo.File, hash narinfo.PathHash) string {
	name, err := file.Path()
	if err != nil || !IsNarName(name) || HashInName(name) != hash {
		return ""
	}
	return name
}

// itemBytes is the byte store for the bytes of items: it refuses all names but those of
// nars, wherever they come from. The notes and the quarantine of the storage are written
// to the ByteStore itself.
type itemBytes struct{ bytestore.Store }

// errNoNarName says that a name isn't one that a nar can have.
var errNoNarName = errors.New("not a name for a nar")

func checkName(tried, name string) error {
	if IsNarName(name) {
		return nil
	}
	return fmt.Errorf("%s %.200q: %w: %w", tried, name, errNoNarName, fs.ErrInvalid)
}

// Open implements [bytestore.Store].
func (b *itemBytes) Open(ctx context.Context, name string, offset, length int64) (io.ReadCloser, bytestore.Info, error) {
	if err := checkName("open", name); err != nil {
		return nil, bytestore.Info{}, err
	}
	return b.Store.Open(ctx, name, offset, length)
}

// Stage implements [bytestore.Store].
func (b *itemBytes) Stage(ctx context.Context, name string, from io.Reader, size int64) (bytestore.Staged, error) {
	if err := checkName("store", name); err != nil {
		return nil, err
	}
	return b.Store.Stage(ctx, name, from, size)
}

// StageFile implements [bytestore.Store].
func (b *itemBytes) StageFile(ctx context.Context, name string, file *os.File, size int64) (bytestore.Staged, error) {
	if err := checkName("store", name); err != nil {
		return nil, err
	}
	return b.Store.StageFile(ctx, name, file, size)
}

// Remove implements [bytestore.Store].
func (b *itemBytes) Remove(ctx context.Context, name string) error {
	if err := checkName("remove", name); err != nil {
		return err
	}
	return b.Store.Remove(ctx, name)
}
