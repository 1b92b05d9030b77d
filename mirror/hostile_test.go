package mirror

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"nar-herder/internal/hostile"
	"nar-herder/internal/testlog"
	"nar-herder/mirror/cursor"
	"nar-herder/mirror/nars"
	"nar-herder/narinfo"
	"nar-herder/peer"
	"nar-herder/peer/failover"
	"nar-herder/removal/deletion"
	"nar-herder/storage"
	"nar-herder/storage/bytestore"
	"nar-herder/storage/directory"
	"nar-herder/storage/index"
)

// evil are the nars of a hostile source.
const evil = "evil"

// evilInfo returns a narinfo with right hashes and the given URL.
func evilInfo(n int, url string) string {
	signed := fmt.Sprintf("StorePath: %s\nNarHash: %s\nNarSize: %d\nReferences: \n", testPath(n), narinfo.NarHash(sha256.Sum256([]byte(evil))), len(evil))
	signature := fmt.Sprintf("(signature (data (flags test) (hash sha256 #%X#)) (sig-val (test (s #00#))) (public-key (test (q #00#))))", sha256.Sum256([]byte(signed)))
	return fmt.Sprintf("%sSignature: 1;farm.example;%s\nURL: %s\nCompression: none\nFileSize: %d\n",
		signed, base64.StdEncoding.EncodeToString([]byte(signature)), url, len(evil))
}

// good is the number of the one valid item.
const good = 1

// hostileTexts are narinfos that name files of others. The valid one comes last.
func hostileTexts() (texts []string) {
	for i, url := range []string{
		"docs/precious.txt", "secret.key", bytestore.OwnerName, bytestore.IdentityName, "nar/none/notes",
		"nar/" + testPath(good).BaseName() + "/" + testPath(905).BaseName(), // a directory in place of a nar
		"nar/none/" + testPath(good).BaseName(),
		"nar/../secret.key", "%2e%2e/secret.key", "//127.0.0.1/secret.key", "http://127.0.0.1/secret.key", "nar/none/..%2f..%2fsecret.key",
	} {
		texts = append(texts, evilInfo(900+i, url))
	}
	return append(texts, evilInfo(good, "nar/none/"+testPath(good).BaseName()))
}

// victim is a mirror with a storage that has other files, too.
type victim struct {
	*Mirror
	index     *index.Index
	directory string
	files     map[string]string
	log       *testlog.Buffer
}

func newVictim(t *testing.T, source string) *victim {
	t.Helper()
	x, err := index.Open(t.Context(), filepath.Join(t.TempDir(), "index.db"), index.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { x.Close() })
	return victimWith(t, x, source)
}

// victimWith makes a mirror with that index, which does not run yet.
func victimWith(t *testing.T, x *index.Index, source string) *victim {
	t.Helper()
	v := &victim{index: x, directory: t.TempDir(), log: new(testlog.Buffer),
		files: map[string]string{"docs/precious.txt": "precious", "secret.key": "secret", "nar/none/notes": "notes"}}
	for name, content := range v.files {
		file := filepath.Join(v.directory, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o755), os.WriteFile(file, []byte(content), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	store, err := directory.Open(v.directory)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { store.Close() })
	base, err := url.Parse(source)
	if err != nil {
		t.Fatal(err)
	}
	v.Mirror = New(Options{
		Storage:   storage.New(x, store, storage.Options{}),
		Source:    peer.New(base, peer.Self{Instance: x.Instance(), ProgressTimeout: 20 * time.Second}),
		Downloads: filepath.Join(t.TempDir(), "download"), Interval: time.Millisecond, Log: slog.New(slog.NewTextHandler(v.log, nil)),
	})
	return v
}

// wantUnharmed fetches the missing nars, and asserts that the valid one was stored and that
// all other files are unchanged.
func (v *victim) wantUnharmed(t *testing.T) {
	t.Helper()
	fetcher, err := nars.New(v.Storage, failover.Of(v.Source), nars.Options{All: true, Limit: -1, Decode: plain, Log: slog.New(slog.NewTextHandler(v.log, nil))})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { fetcher.Run(ctx) })
	until(t, "the good nar", func() bool {
		text, err := os.ReadFile(filepath.Join(v.directory, "nar/none", testPath(good).BaseName()))
		return err == nil && string(text) == evil
	})
	until(t, "all nars to be fetched", func() bool { return fetcher.Status().Missing == 0 })
	stop()
	running.Wait()
	fetcher.Close()
	if _, err := deletion.DeletePending(t.Context(), v.Storage); err != nil {
		t.Error(err)
	}
	for name, content := range v.files {
		if text, err := os.ReadFile(filepath.Join(v.directory, name)); err != nil || string(text) != content {
			t.Errorf("%s: %q, %v", name, text, err)
		}
	}
	for item, err := range v.index.Items(t.Context()) {
		if err != nil || item.Hash != testPath(good).Hash {
			t.Errorf("there is %s, %v", item.Text, err)
		}
	}
}

// TestHostileTexts: a source can't change other files in the storage, whichever way it
// sends narinfos.
func TestHostileTexts(t *testing.T) {
	t.Parallel()
	texts := hostileTexts()
	tell := func(source *hostile.Source) {
		for n, text := range texts {
			source.Add(at(100+n), text)
		}
	}
	empty := func(instance string) []byte {
		return dumpWith(t, instance, evilInfo(good, "nar/none/"+testPath(good).BaseName()))
	}
	for name, run := range map[string]func(t *testing.T, source *hostile.Source, v *victim) error{
		"dump": func(t *testing.T, source *hostile.Source, v *victim) error {
			source.Publish(peer.DumpPath, dumpWith(t, hostile.Instance, texts...))
			return v.resync(t.Context(), cursor.Cursor{}, "test")
		},
		"stream": func(t *testing.T, source *hostile.Source, v *victim) error {
			tell(source)
			ctx, stop := context.WithCancel(t.Context())
			defer stop()
			ended := make(chan error, 1)
			go func() { ended <- v.followStream(ctx, cursor.Cursor{Instance: hostile.Instance}) }()
			until(t, "all changes to be read", func() bool {
				at, err := cursor.Read(t.Context(), v.index)
				return err == nil && at.Position == int64(len(texts))
			})
			stop()
			<-ended
			return nil
		},
		"pages": func(t *testing.T, source *hostile.Source, v *victim) error {
			tell(source)
			return v.followPages(t.Context(), cursor.Cursor{Instance: hostile.Instance})
		},
		"polling": func(t *testing.T, source *hostile.Source, v *victim) error {
			source.Plain()
			tell(source)
			v.askedNumbers = time.Now()
			next := cursor.Cursor{Since: at(99)}
			for range 2 * unreadableTries * len(texts) { // each is requested again
				if err := v.followPlain(t.Context(), next); err != nil && !errors.Is(err, errUnreadable) {
					return err
				}
				var err error
				if next, err = cursor.Read(t.Context(), v.index); err != nil {
					return err
				}
				if next.IsZero() {
					next = cursor.Cursor{Since: at(99)}
				}
			}
			return nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			source := hostile.New()
			t.Cleanup(source.Close)
			source.Nar([]byte(evil))
			source.Publish(peer.DumpPath, empty(""))
			v := newVictim(t, source.URL)
			t.Cleanup(func() {
				if t.Failed() {
					t.Log(v.log)
				}
			})
			if err := run(t, source, v); err != nil {
				t.Fatal(err)
			}
			v.wantUnharmed(t)
		})
	}
}

// plain decodes uncompressed nars.
func plain(_ context.Context, _ string, r io.Reader, _ int64) (io.ReadCloser, error) {
	return io.NopCloser(r), nil
}
