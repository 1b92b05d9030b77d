package uses

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"nar-herder/internal/testfs"
	"nar-herder/internal/testlog"
	"nar-herder/narinfo"
	"nar-herder/storage/index"
)

func openIndex(t *testing.T, path string) *index.Index {
	t.Helper()
	x, err := index.Open(t.Context(), path, index.Options{})
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

// TestClose: Close writes the counts. If another process has the database locked, it logs
// one line with the number of lost uses.
func TestClose(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "db")
	x, other := openIndex(t, path), openIndex(t, path)
	n, err := narinfo.Parse([]byte("StorePath: /gnu/store/f7d5xvkf9s1mdnclid1kqndn30nim936-greeting.txt\nNarHash: sha256:" +
		strings.Repeat("0", 52) + "\nNarSize: 1\nReferences: \nURL: nar/x\nCompression: none\nFileSize: 1\n"))
	if err != nil {
		t.Fatal(err)
	}
	entry := x.Prepare(n)
	entry.AddedAt = time.Now()
	if err := x.Update(t.Context(), func(tx *index.Tx) error { return tx.Put(entry, nil) }); err != nil {
		t.Fatal(err)
	}
	used := func() bool {
		var cursor int64
		popular, err := x.Popular(context.Background(), "zstd", 2, &cursor)
		if err != nil {
			t.Fatal(err)
		}
		return len(popular) == 1
	}
	hash := n.StorePath.Hash

	var text testlog.Buffer
	c := New(x, slog.New(slog.NewTextHandler(&text, nil)))
	locked := errors.New("it was locked for the test")
	err = other.Update(t.Context(), func(*index.Tx) error {
		for range 3 {
			c.Used(hash, "")
		}
		begun := time.Now()
		c.Close()
		if took := time.Since(begun); took > 4*closeTimeout {
			t.Errorf("it took %v", took)
		}
		return locked
	})
	if !errors.Is(err, locked) {
		t.Fatal(err)
	}
	if log := text.String(); strings.Count(log, "\n") != 1 || !strings.Contains(log, "uses=3 items=1") || used() {
		t.Errorf("log: %s; written: %v", log, used())
	}

	text = testlog.Buffer{}
	c = New(x, slog.New(slog.NewTextHandler(&text, nil)))
	c.Used(hash, "")
	c.Used(hash, "")
	c.Close()
	if !used() || text.String() != "" {
		t.Errorf("written: %v; log: %s", used(), text.String())
	}
}

// TestFlushFull: counts are written also if only removals may write, because items with
// pending uses can't be removed.
func TestFlushFull(t *testing.T) {
	t.Parallel()
	directory := testfs.Small(t, 8<<20)
	path := filepath.Join(directory, "db")
	x := openIndex(t, path)
	if state, err := x.KeepReserve(); state != index.ReserveKept || err != nil {
		t.Fatalf("the reserve is %d, %v", state, err)
	}
	testfs.Fill(t, directory)
	if err := os.Truncate(path+".reserve", 0); err != nil {
		t.Fatal(err)
	}
	var text testlog.Buffer
	c := New(x, slog.New(slog.NewTextHandler(&text, nil)))
	hash := narinfo.PathHash{1}
	c.Used(hash, "")
	c.Flush(t.Context())
	if c.IsPending(hash) || text.String() != "" {
		t.Errorf("pending: %v; log: %s", c.IsPending(hash), text.String())
	}
}
