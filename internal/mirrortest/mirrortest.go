// Package mirrortest makes narinfos, indexes and dumps for tests of mirrors.
package mirrortest

import (
	"bytes"
	"crypto/sha256"
	"database/sql"
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"nar-herder/internal/rowsum"
	"nar-herder/mirror/original"
	"nar-herder/narinfo"
	"nar-herder/storage/index"
)

// Path returns the store path of the Nth test item. The paths differ at the end of the
// hash, by which the index sorts.
func Path(n int) narinfo.StorePath {
	const digits = "0123456789abcdfghijklmnpqrsvwxyz"
	hash := bytes.Repeat([]byte("0"), narinfo.PathHashLen)
	for i := len(hash) - 1; n > 0; i, n = i-1, n/32 {
		hash[i] = digits[n%32]
	}
	path, err := narinfo.ParseBaseName(string(hash) + "-item")
	if err != nil {
		panic(err)
	}
	return path
}

// Narinfo returns a version of the Nth item's narinfo. nar is its NarHash.
func Narinfo(n, version, nar int) *narinfo.Narinfo {
	path := Path(n)
	signed := fmt.Appendf(nil, "StorePath: %s\nNarHash: sha256:%052d\nNarSize: 120\nReferences: \nVersion: %d\n", path, nar, version)
	info, err := narinfo.Parse(fmt.Appendf(Sign(signed), "URL: nar/none/%s\nCompression: none\nFileSize: 120\n", path.BaseName()))
	if err != nil {
		panic(err)
	}
	return info
}

// Sign appends a signature to the fields of a narinfo. Its algorithm is unknown, but the hash of
// the signed text is right.
func Sign(fields []byte) []byte {
	signature := fmt.Sprintf("(signature (data (flags test) (hash sha256 #%X#)) (sig-val (test (s #00#))) (public-key (test (q #00#))))", sha256.Sum256(fields))
	return fmt.Appendf(fields, "Signature: 1;farm.example;%s\n", base64.StdEncoding.EncodeToString([]byte(signature)))
}

// At returns the time of the Nth change.
func At(n int) time.Time { return time.Date(2026, 1, 1, 0, 0, n, 0, time.UTC) }

// IndexCopy returns a copy of an index with the texts, modified by a script.
func IndexCopy(t testing.TB, script string, texts ...string) []byte {
	t.Helper()
	x, err := index.Open(t.Context(), filepath.Join(t.TempDir(), "source.db"), index.Options{})
	if err != nil {
		t.Fatal(err)
	}
	err = x.Update(t.Context(), func(tx *index.Tx) error {
		for n, text := range texts {
			info, err := narinfo.Parse([]byte(text))
			if err != nil {
				return err
			}
			entry := x.Prepare(info)
			entry.AddedAt = At(n)
			if err := tx.Put(entry, nil); err != nil {
				return err
			}
		}
		return nil
	})
	name := filepath.Join(t.TempDir(), "copy.db")
	if err == nil {
		_, err = x.Copy(t.Context(), name, time.Now(), 10)
	}
	if err := errors.Join(err, x.Close()); err != nil {
		t.Fatal(err)
	}
	return Changed(t, name, script)
}

// Changed runs a script on a database and returns its content.
func Changed(t testing.TB, name, script string) []byte {
	t.Helper()
	db, err := sql.Open("sqlite", name)
	if err != nil {
		t.Fatal(err)
	}
	_, err = db.Exec(script)
	if err := errors.Join(err, db.Close()); err != nil {
		t.Fatal(err)
	}
	content, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return content
}

// Dump returns the content of a dump of narinfos in the original's schema. Unless instance is
// "", the dump has its change numbers and a sum.
func Dump(t testing.TB, instance string, texts ...string) []byte {
	t.Helper()
	name := filepath.Join(t.TempDir(), "dump.db")
	w, err := original.Create(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	for n, text := range texts {
		err = errors.Join(err, w.Add(original.Item{Text: []byte(text), AddedAt: At(n)}), w.AddChange(original.Change{At: At(n), Data: text}))
	}
	if instance != "" {
		var sum rowsum.Sum
		for n, text := range texts {
			original.AddTo(&sum, original.Item{Text: []byte(text), AddedAt: At(n)})
		}
		err = errors.Join(err, w.SetInfo("instance", instance), w.SetInfo("last_change", "0"), w.SetInfo(original.SumKey, sum.String()))
	}
	if err := errors.Join(err, w.Finish(t.Context())); err != nil {
		t.Fatal(err)
	}
	content, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return content
}

// Items returns the times and texts of the items of a closed index.
func Items(t testing.TB, name string) (lines []string) {
	t.Helper()
	x, err := index.Open(t.Context(), name, index.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer x.Close()
	for item, err := range x.Items(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		lines = append(lines, item.AddedAt.Format(time.DateTime)+" "+string(item.Text))
	}
	slices.Sort(lines)
	return lines
}
