package main

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/alecthomas/kong"

	"nar-herder/narinfo"
	"nar-herder/removal/withdrawal"
	"nar-herder/storage"
	"nar-herder/storage/importer"
	"nar-herder/storage/index"
	"nar-herder/storage/owner"
)

// TestGrace withdraws an item just after a client got its narinfo, which the client keeps
// for the longest TTL of the options: the nar is served until then, and deleted soon after.
func TestGrace(t *testing.T) {
	t.Parallel()
	const hour, day = time.Hour, 24 * time.Hour
	for name, test := range map[string]struct {
		options []string
		keeps   time.Duration // how long a client keeps the narinfo
	}{
		"none":                       {nil, 36 * hour},
		"ttl":                        {[]string{"--ttl=5d"}, 5 * day},
		"short ttl":                  {[]string{"--ttl=1h"}, hour},
		"ttl being lowered":          {[]string{"--ttl=30d", "--new-ttl=1h"}, 30 * day},
		"ttl being raised":           {[]string{"--ttl=1h", "--new-ttl=30d"}, 30 * day},
		"ttl being set, short":       {[]string{"--new-ttl=1h"}, 36 * hour},
		"ttl being set, long":        {[]string{"--new-ttl=3d"}, 3 * day},
		"type without its own":       {[]string{"--ttl=2d", "--enable-cached-compression=zstd"}, 2 * day},
		"type's own is longer":       {[]string{"--ttl=2h", "--enable-cached-compression=zstd", "--cached-compression-ttl=zstd=9d"}, 9 * day},
		"type's own is shorter":      {[]string{"--ttl=2d", "--enable-cached-compression=zstd", "--cached-compression-ttl=zstd=1h"}, 2 * day},
		"type's own is lowered":      {[]string{"--ttl=2h", "--enable-cached-compression=zstd", "--cached-compression-ttl=zstd=9d", "--cached-compression-new-ttl=zstd=1h"}, 9 * day},
		"type's own is raised":       {[]string{"--ttl=2h", "--enable-cached-compression=zstd", "--cached-compression-ttl=zstd=1h", "--cached-compression-new-ttl=zstd=9d"}, 9 * day},
		"the longest of two types":   {[]string{"--ttl=2h", "--enable-cached-compression=zstd", "--enable-cached-compression=lzip", "--cached-compression-ttl=zstd=3d", "--cached-compression-ttl=lzip=4d"}, 4 * day},
		"none but a type's, shorter": {[]string{"--enable-cached-compression=zstd", "--cached-compression-ttl=zstd=1h"}, 36 * hour},
		"zero":                       {[]string{"--ttl=0s"}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var server serverCommand
			parser, err := kong.New(&server)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := parser.Parse(append([]string{"--storage=/nonexistent"}, test.options...)); err != nil {
				t.Fatal(err)
			}
			cacheOptions, err := server.cacheOptions()
			if err != nil {
				t.Fatal(err)
			}
			all := cacheOptions.Advertised()
			if grace := all[index.Narinfos].Grace; grace != test.keeps {
				t.Fatalf("grace %v, want %v", grace, test.keeps)
			}
			const answersKept = time.Second // after the withdrawal
			place := newPlace(t)
			file := filepath.Join(place.storage, "nar/lzip", greeting)
			synctest.Test(t, func(t *testing.T) {
				store, err := open(t.Context(), place.database, place.storage, opening{policy: owner.Always}, slog.New(slog.DiscardHandler))
				if err == nil {
					err = store.claim.Acquire(t.Context())
				}
				if err != nil {
					t.Fatal(err)
				}
				if err := store.index.Advertise(t.Context(), time.Now(), all); err != nil {
					t.Fatal(err)
				}
				err = importer.New(store.Storage).Import(t.Context(), []string{published(greeting)}, importer.Options{Keep: true}, func(importer.Imported) {})
				if err != nil {
					t.Fatal(err)
				}
				hash, err := narinfo.ParsePathHash(greeting[:32])
				if err != nil {
					t.Fatal(err)
				}
				// look removes due items, as the server does each second.
				// It doesn't run each second here: a month of seconds takes
				// minutes.
				look := func() {
					ctx, stop := context.WithCancel(t.Context())
					ended := make(chan struct{})
					go func() {
						withdrawal.New(store.Storage, slog.New(slog.DiscardHandler)).Run(ctx)
						close(ended)
					}()
					synctest.Wait()
					stop()
					<-ended
				}
				withdrawn := time.Now()
				if _, err := store.WithdrawAll(t.Context(), []narinfo.PathHash{hash}, nil); err != nil {
					t.Error(err)
				}
				served := func() bool {
					item, err := store.Item(t.Context(), hash)
					if errors.Is(err, storage.ErrNotFound) {
						return false
					} else if err != nil {
						t.Error(err)
						return false
					}
					reader, _, err := store.OpenFile(t.Context(), item, 0, 0, -1)
					if err != nil {
						t.Error(err)
						return false
					}
					defer reader.Close()
					content, err := io.ReadAll(reader)
					return err == nil && string(content) == read(t, testdata, "published/nar/lzip", greeting)
				}
				// The last narinfo may have been sent a moment later.
				for _, at := range []time.Duration{0, test.keeps / 2, test.keeps, test.keeps + answersKept - time.Millisecond} {
					time.Sleep(time.Until(withdrawn.Add(at)))
					look()
					if !served() {
						t.Errorf("the nar is deleted after %v", at)
					}
				}
				time.Sleep(time.Millisecond)
				look()
				if _, err := os.Stat(file); served() || !errors.Is(err, fs.ErrNotExist) {
					t.Errorf("it is still there after %v: %v", time.Since(withdrawn), err)
				}
				if err := store.close(); err != nil {
					t.Error(err)
				}
			})
		})
	}
}
