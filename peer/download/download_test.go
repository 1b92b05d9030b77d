package download

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"nar-herder/internal/disk"
	"nar-herder/peer"
)

// downloadFrom makes a peer of a handler, with a disk of 100 GiB that has so many bytes
// free.
func downloadFrom(t *testing.T, free func() int64, handler http.HandlerFunc) (*peer.Peer, string) {
	t.Helper()
	server := httptest.NewServer(handler)
	t.Cleanup(server.Close)
	base, err := url.Parse(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	look := func(string) (int64, int64, error) { return free(), 100 << 30, nil }
	return peer.New(base, peer.Self{Room: look}), filepath.Join(t.TempDir(), "file")
}

// gone asserts that no file of a download exists.
func gone(t *testing.T, name string) {
	t.Helper()
	if left, err := filepath.Glob(name + "*"); err != nil || len(left) > 0 {
		t.Errorf("%q are left, %v", left, err)
	}
}

// TestDownloadRoom: a download leaves room for the database, even if its length is unknown
// or it never ends.
func TestDownloadRoom(t *testing.T) {
	t.Parallel()
	const giga = 1 << 30
	t.Run("length", func(t *testing.T) {
		t.Parallel()
		p, name := downloadFrom(t, func() int64 { return 11 * giga }, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("ETag", `"x"`)
			w.Header().Set("Content-Length", fmt.Sprint(int64(10*giga+1)))
			w.WriteHeader(http.StatusOK)
		})
		_, err := Fetch(t.Context(), p, peer.DumpPath, name, false, nil)
		if !errors.Is(err, disk.ErrNoRoom) || !strings.Contains(err.Error(), "free space there") {
			t.Error(err)
		}
		gone(t, name)
	})
	t.Run("no end", func(t *testing.T) {
		t.Parallel()
		var name string
		p, name := downloadFrom(t, func() int64 {
			if info, err := os.Stat(name); err == nil {
				return giga + 50<<20 - info.Size()
			}
			return giga + 50<<20
		}, func(w http.ResponseWriter, r *http.Request) {
			for part := make([]byte, 1<<20); ; {
				if _, err := w.Write(part); err != nil {
					return
				}
			}
		})
		_, err := Fetch(t.Context(), p, peer.DumpPath, name, false, nil)
		if !errors.Is(err, disk.ErrNoRoom) {
			t.Error(err)
		}
		gone(t, name)
	})
}

// TestDownloadHashing: a complete file is read again for its digest, which stops with the
// program.
func TestDownloadHashing(t *testing.T) {
	t.Parallel()
	text := bytes.Repeat([]byte("x"), 8<<20)
	sum := sha256.Sum256(text)
	p, name := downloadFrom(t, func() int64 { return 50 << 30 }, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("ETag", `"x"`)
		w.Header().Set(peer.DigestHeader, "sha-256=:"+base64.StdEncoding.EncodeToString(sum[:])+":")
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(text))
	})
	if _, err := Fetch(t.Context(), p, peer.DumpPath, name, false, nil); err != nil {
		t.Fatal(err)
	}
	known, have := readPartial(name, peer.DumpPath)
	if have != int64(len(text)) {
		t.Fatalf("%d bytes are there", have)
	}
	ctx, stop := context.WithCancel(t.Context())
	stop()
	if _, err := finish(ctx, name, known, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("it was read all the same: %v", err)
	}
	if done, err := Fetch(t.Context(), p, peer.DumpPath, name, false, nil); err != nil || !done.Verified {
		t.Errorf("the next: %+v, %v", done, err)
	}
}

// TestLongHeader: the header of an answer, which is partly stored, is bounded.
func TestLongHeader(t *testing.T) {
	t.Parallel()
	p, _ := downloadFrom(t, nil, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("ETag", `"`+strings.Repeat("x", 1<<20)+`"`)
	})
	if tag, _, err := Look(t.Context(), p, peer.DumpPath, false); err == nil {
		t.Errorf("a tag of %d bytes was accepted", len(tag))
	}
}
