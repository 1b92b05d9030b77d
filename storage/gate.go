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

// Admit parses and checks a narinfo from outside: a file, another instance or another
// database. No other code may parse such a text first. Like [narinfo.Parse], it keeps the
// text.
func Admit(text []byte) (*narinfo.Narinfo, error) {
	n := new(narinfo.Narinfo)
	if err := AdmitInto(n, text); err != nil {
		return nil, err
	}
	return n, nil
}

// AdmitInto is like Admit, but uses [narinfo.ParseInto].
func AdmitInto(n *narinfo.Narinfo, text []byte) error {
	if err := narinfo.ParseInto(n, text); err != nil {
		return err
	}
	return CheckNarinfo(n)
}

// CheckNarinfo returns an error for a narinfo that must not be added. Each of its URLs
// must be that of a nar of this very item, since files are stored and deleted under the
// names in the URLs. Only URLs with a scheme may be anything: nothing is stored for them.
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

// IsNarName reports whether a nar can have the name: nar/HASH-NAME or
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
	// A directory with the name of an item would block that item's uncompressed nar.
	_, named := findHash(compression)
	return !named && !strings.Contains(base, "/")
}

// NarName returns the name that a file of the item with the hash is stored under, or "" if
// it is not in a storage or not named after the item.
func NarName(file narinfo.File, hash narinfo.PathHash) string {
	name, err := file.Path()
	if err != nil || !IsNarName(name) || HashInName(name) != hash {
		return ""
	}
	return name
}

// itemBytes is the byte store for nars: it refuses all other names. Notes and quarantined
// files are written to the Store itself.
type itemBytes struct{ bytestore.Store }

// errNoNarName says that no nar can have a name.
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
