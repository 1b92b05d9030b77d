package storage

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
	"testing"

	"nar-herder/storage/bytestore"
)

const (
	ownBase   = "00000000000000000000000000000001-greet-1.0"
	otherBase = "00000000000000000000000000000002-greet-1.0"
)

// named returns a narinfo with the URLs.
func named(urls ...string) []byte {
	text := fmt.Sprintf("StorePath: /gnu/store/%s\nNarHash: sha256:%052d\nNarSize: 120\nReferences: \n", ownBase, 1)
	for _, url := range urls {
		text += "URL: " + url + "\nCompression: none\nFileSize: 120\n"
	}
	return []byte(text)
}

// TestAdmit: a narinfo may name the nars of its own item, and nothing else in a storage.
func TestAdmit(t *testing.T) {
	t.Parallel()
	own := "nar/lzip/" + ownBase
	for _, test := range []struct {
		urls []string
		want string // of the error; "" for none
	}{
		{[]string{own}, ""},
		{[]string{"/" + own}, ""},
		{[]string{"nar/" + ownBase}, ""},
		{[]string{"nar/lzip/00000000000000000000000000000001-greet%2D1.0"}, ""},
		{[]string{own, "nar/zstd/" + ownBase, "nar/" + ownBase}, ""},
		{[]string{own, "https://elsewhere.example/docs/precious.txt"}, ""},
		{[]string{"https://elsewhere.example/" + own}, "has a scheme"},
		{[]string{"docs/precious.txt"}, "not the URL of a nar"},
		{[]string{own, "docs/precious.txt"}, "not the URL of a nar"},
		{[]string{"docs/" + ownBase}, "not the URL of a nar"},
		{[]string{bytestore.OwnerName}, "not the URL of a nar"},
		{[]string{own, bytestore.IdentityName}, "not the URL of a nar"},
		{[]string{ownBase}, "not the URL of a nar"},
		{[]string{"quarantine/nar/lzip/" + ownBase}, "not the URL of a nar"},
		{[]string{"nar/lzip/.nar-herder-spool"}, "not the URL of a nar"},
		{[]string{"nar/a/b/" + ownBase}, "not the URL of a nar"},
		{[]string{"nar/" + otherBase + "/" + ownBase}, "not the URL of a nar"},
		{[]string{"nar/lzip/" + otherBase}, "another item"},
		{[]string{own, "nar/lzip/" + otherBase}, "another item"},
		{[]string{"nar/lzip/00000000000000000000000000000001-other"}, "another item"},
		{[]string{"../" + own}, ".."},
		{[]string{"nar/%2e%2e/" + bytestore.OwnerName}, ".."},
		{[]string{"//host/" + own}, "host"},
	} {
		n, err := Admit(named(test.urls...))
		switch {
		case test.want == "" && (err != nil || len(n.Files) != len(test.urls)):
			t.Errorf("%q: %v", test.urls, err)
		case test.want != "" && (err == nil || n != nil || !strings.Contains(err.Error(), test.want)):
			t.Errorf("%q: %v, want it to say %q", test.urls, err, test.want)
		}
	}
}

// nothing is a byte store that must not be called.
type nothing struct {
	bytestore.Store
	t *testing.T
}

func (s nothing) Open(_ context.Context, name string, _, _ int64) (io.ReadCloser, bytestore.Info, error) {
	s.t.Errorf("%q is opened", name)
	return nil, bytestore.Info{}, fs.ErrNotExist
}

func (s nothing) Stage(_ context.Context, name string, _ io.Reader, _ int64) (bytestore.Staged, error) {
	s.t.Errorf("%q is written", name)
	return nil, fs.ErrInvalid
}

func (s nothing) StageFile(_ context.Context, name string, _ *os.File, _ int64) (bytestore.Staged, error) {
	s.t.Errorf("%q is written", name)
	return nil, fs.ErrInvalid
}

func (s nothing) Remove(_ context.Context, name string) error {
	s.t.Errorf("%q is removed", name)
	return nil
}

// TestItemBytes: only names of nars reach the byte store.
func TestItemBytes(t *testing.T) {
	t.Parallel()
	b := &itemBytes{nothing{t: t}}
	for _, name := range []string{"", ".", "docs/precious.txt", bytestore.OwnerName, bytestore.IdentityName, ownBase, "docs/" + ownBase, "nar", "nar/", "nar/lzip/", "nar/lzip/x", "nar/a/b/" + ownBase,
		"nar/../" + ownBase, "nar/" + otherBase + "/" + ownBase, "quarantine/nar/" + ownBase} {
		_, _, err1 := b.Open(t.Context(), name, 0, -1)
		_, err2 := b.Stage(t.Context(), name, strings.NewReader("x"), 1)
		_, err3 := b.StageFile(t.Context(), name, os.Stdin, 1)
		err4 := b.Remove(t.Context(), name)
		for i, err := range []error{err1, err2, err3, err4} {
			if !errors.Is(err, fs.ErrInvalid) {
				t.Errorf("%q, call %d: %v", name, i, err)
			}
		}
	}
}

// FuzzAdmit: for any admitted text, all names are those of its own item.
func FuzzAdmit(f *testing.F) {
	own := "nar/lzip/" + ownBase
	for _, urls := range [][]string{{own}, {own, "nar/" + ownBase}, {"docs/precious.txt"}, {bytestore.OwnerName}, {"nar/lzip/" + otherBase}, {"nar/" + otherBase + "/" + ownBase},
		{own, "https://elsewhere.example/x"}, {"../" + own}, {"nar/%2e%2e/x"}, {"/" + own}} {
		f.Add(named(urls...))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		n, err := Admit(bytes.Clone(text))
		if err != nil {
			return
		}
		if !bytes.Equal(n.Text, text) {
			t.Errorf("the text has become %q", n.Text)
		}
		own := 0
		for _, file := range n.Files {
			name := NarName(file, n.StorePath.Hash)
			if name == "" {
				continue
			}
			own++
			if path.Base(name) != n.StorePath.BaseName() || !fs.ValidPath(name) || path.Dir(name) != "nar" && path.Dir(path.Dir(name)) != "nar" {
				t.Errorf("%q is stored as %q", file.URL, name)
			}
		}
		if own == 0 {
			t.Error("it has no nar")
		}
	})
}
