package index

import (
	"bytes"
	"context"
	"errors"
	"os"
	"sync"
	"testing"
)

// onWait is a context that reports the first wait for its Done.
type onWait struct {
	context.Context
	once   *sync.Once
	waited func()
}

func (c onWait) Done() <-chan struct{} {
	c.once.Do(c.waited)
	return c.Context.Done()
}

// TestReadLogIndexChanging reads while another process changes the index of the log, which
// a read-only connection can't repair.
func TestReadLogIndexChanging(t *testing.T) {
	t.Parallel()
	// See https://www.sqlite.org/walformat.html#the_wal_index_file_format.
	for name, change := range map[string]struct {
		at    int64
		bytes []byte
	}{
		// A commit, and a reader of it, after this connection has read the header.
		"read marks beyond what it has seen": {104, bytes.Repeat([]byte{0xff}, 16)},
		// The two copies of the header differ.
		"header half written": {48, make([]byte, 48)},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path := oldDatabase(t)
			w := startWriter(t, path)
			log, err := os.OpenFile(path+"-shm", os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			// Last, because it drops this process's locks on the file.
			t.Cleanup(func() { log.Close() })
			x := openRead(t, path)
			// changed calls f, and undoes the change when f waits.
			changed := func(f func(ctx context.Context)) {
				before := make([]byte, len(change.bytes))
				_, err1 := log.ReadAt(before, change.at)
				_, err2 := log.WriteAt(change.bytes, change.at)
				if err := errors.Join(err1, err2); err != nil {
					t.Fatal(err)
				}
				waited := false
				f(onWait{t.Context(), new(sync.Once), func() {
					waited = true
					if _, err := log.WriteAt(before, change.at); err != nil {
						t.Error(err)
					}
				}})
				if !waited {
					t.Error("it did not wait")
				}
			}
			changed(func(ctx context.Context) {
				if totals, err := x.Totals(ctx); err != nil || totals != (Totals{3, 3, 40}) {
					t.Errorf("%+v, %v", totals, err)
				}
			})
			wantTotals(t, x, Totals{3, 3, 40})
			w.close(t)
		})
	}
}
