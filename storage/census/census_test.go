package census

import (
	"context"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"nar-herder/internal/testlog"
	"nar-herder/narinfo"
	"nar-herder/storage/index"
)

// entry returns the Nth item, with a nar of 100 bytes in each compression. The first stored
// nars are in the storage.
func entry(t *testing.T, x *index.Index, n, stored int, compressions ...string) *index.Entry {
	t.Helper()
	var text strings.Builder
	fmt.Fprintf(&text, "StorePath: /gnu/store/%032d-item\nNarHash: sha256:%052d\nNarSize: 1000\nReferences: \n", n, n)
	for _, compression := range compressions {
		fmt.Fprintf(&text, "URL: nar/%s/%032d-item\nCompression: %[1]s\nFileSize: 100\n", compression, n)
	}
	info, err := narinfo.Parse([]byte(text.String()))
	if err != nil {
		t.Fatal(err)
	}
	prepared := x.Prepare(info)
	prepared.Stored = 1<<stored - 1
	return prepared
}

func open(t *testing.T) *index.Index {
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
	return x
}

func put(t *testing.T, x *index.Index, entries ...*index.Entry) {
	t.Helper()
	err := x.Update(t.Context(), func(tx *index.Tx) error {
		for _, e := range entries {
			if err := tx.Put(e, nil); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestCount(t *testing.T) {
	t.Parallel()
	x := open(t)
	for n := range 450 { // more than two batches
		put(t, x, entry(t, x, n, n%2, "lzip", "zstd"))
	}
	withdrawn := entry(t, x, 1000, 1, "lzip")
	put(t, x, withdrawn)
	err := x.Update(t.Context(), func(tx *index.Tx) error {
		_, err := tx.Withdraw(withdrawn.Narinfo.StorePath.Hash, time.Now())
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	c := New(x, slog.New(slog.DiscardHandler))
	c.rest = 0
	var counts Counts
	position, err := c.count(t.Context(), &counts, -1)
	if err != nil {
		t.Fatal(err)
	}
	if counts.Items != 450 || counts.NarSize != 450000 || counts.ByCompression["lzip"] != (Nars{450, 225, 22500}) || counts.ByCompression["zstd"] != (Nars{450, 0, 0}) {
		t.Errorf("%+v", counts)
	}
	if partial := c.Counts(); partial.Items != 400 || !partial.At.IsZero() {
		t.Errorf("while counting: %+v", partial)
	}
	// New items are counted without the others.
	put(t, x, entry(t, x, 2000, 1, "zstd"))
	if _, err := c.count(t.Context(), &counts, position); err != nil || counts.Items != 451 || counts.ByCompression["zstd"] != (Nars{451, 1, 100}) {
		t.Errorf("%+v, %v", counts, err)
	}
}

// TestManyCompressions: narinfos may name any, and memory stays bounded.
func TestManyCompressions(t *testing.T) {
	t.Parallel()
	x := open(t)
	for n := range 100 {
		put(t, x, entry(t, x, n, 0, fmt.Sprint("x", n)))
	}
	c := New(x, slog.New(slog.DiscardHandler))
	var counts Counts
	if _, err := c.count(t.Context(), &counts, -1); err != nil {
		t.Fatal(err)
	}
	if len(counts.ByCompression) != maxNames+1 || counts.ByCompression[Other].Named != 100-maxNames {
		t.Errorf("%+v", counts)
	}
}

func TestRun(t *testing.T) {
	t.Parallel()
	x := open(t)
	put(t, x, entry(t, x, 1, 1, "gzip"))
	log := new(testlog.Buffer)
	c := New(x, slog.New(slog.NewTextHandler(log, nil)))
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		c.Run(ctx)
	}()
	for until := time.Now().Add(30 * time.Second); c.Counts().At.IsZero(); time.Sleep(time.Millisecond) {
		if time.Now().After(until) {
			t.Fatal("nothing is counted")
		}
	}
	if counts := c.Counts(); counts.ByCompression["gzip"] != (Nars{1, 1, 100}) {
		t.Errorf("%+v", counts)
	}
	counts := c.Counts()
	counts.ByCompression["gzip"] = Nars{} // a copy
	if c.Counts().ByCompression["gzip"].Named != 1 {
		t.Error("callers share the map")
	}
	stop()
	<-ended
	if log.String() != "" {
		t.Error(log.String())
	}
}
