package transfer_test

import (
	"context"
	"errors"
	"io"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"nar-herder/storage/bytestore"
	"nar-herder/storage/directory"
	"nar-herder/storage/transfer"
)

// lying is a directory with a wrong size in Open.
type lying struct {
	*directory.Directory
	more int64
}

func (l *lying) Open(ctx context.Context, name string, offset, length int64) (io.ReadCloser, bytestore.Info, error) {
	body, info, err := l.Directory.Open(ctx, name, offset, length)
	info.Size += l.more
	return body, info, err
}

// TestRemoteListed: a remote target is listed once there are many files to look up, not
// before.
func TestRemoteListed(t *testing.T) {
	t.Parallel()
	nars := some(2600)
	from, _ := opened(t, nars)
	there := files{}
	for n := range 2500 {
		there[name(n)] = nars[name(n)]
	}
	there[name(2550)] = "another"
	disk, target := opened(t, there)
	to := remote{&hooked{Store: disk}, 16}
	var listed []int64
	job := &transfer.Copy{From: from, To: to, Items: itemsOf(t, nars), Decode: decode, Listed: func(files int64) { listed = append(listed, files) }}
	_, summary, err := run(t, job)
	if err != nil || summary.Files[transfer.There] != 2500 || summary.Files[transfer.Copied] != 100 || summary.Replaced != 1 {
		t.Errorf("%+v, %v", summary, err)
	}
	if stats, lists := to.count("stat"), to.count("list"); stats > 2000 || stats < 1900 || lists != 1 || to.count("flush") != 0 {
		t.Errorf("%d calls of Stat, %d of List", stats, lists)
	}
	if len(listed) != 2 || listed[0] != 1000 || listed[1] != 2000 {
		t.Errorf("listed %v", listed)
	}
	wantFiles(t, target, nars)

	small, _ := opened(t, some(50))
	to = remote{&hooked{Store: disk}, 16}
	if _, summary, err := run(t, &transfer.Copy{From: small, To: to}); err != nil || summary.Files[transfer.There] != 50 || to.count("list") != 0 {
		t.Errorf("%+v, %v, %d listings", summary, err, to.count("list"))
	}
}

// TestRemoteUnlisted: if a part of the listing fails, its files are looked up one by one; if
// the whole listing fails, the copy ends.
func TestRemoteUnlisted(t *testing.T) {
	t.Parallel()
	nars := some(2100)
	from, _ := opened(t, nars)
	disk, target := opened(t, nars)
	to := remote{&hooked{Store: disk}, 16}
	to.hook = func(call, at string) error {
		if call == "listed" {
			return errFault
		}
		return nil
	}
	if _, summary, err := run(t, &transfer.Copy{From: from, To: to}); err != nil || summary.Files[transfer.There] != 2100 || to.count("stat") != 2100 {
		t.Errorf("%+v, %v", summary, err)
	}
	to.hook = failing(syscall.ECONNRESET, "list")
	if _, summary, err := run(t, &transfer.Copy{From: from, To: to}); !errors.Is(err, transfer.ErrStore) || !errors.Is(err, syscall.ECONNRESET) || summary.Files[transfer.Copied] != 0 {
		t.Errorf("%+v, %v", summary, err)
	}
	wantFiles(t, target, nars)
}

// TestConcurrency copies as many files concurrently as requested, or as suits the stores.
func TestConcurrency(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		remote, concurrency, want int
	}{{0, 0, 4}, {0, 1, 1}, {0, 7, 7}, {20, 0, 20}, {2, 0, 4}, {20, 3, 3}} {
		from, _ := opened(t, some(60))
		disk, _ := opened(t, nil)
		var mu sync.Mutex
		inside, most := 0, 0
		full := make(chan struct{})
		source := &hooked{Store: from}
		source.hook = func(call, at string) error {
			if call != "open" {
				return nil
			}
			mu.Lock()
			inside++
			most = max(most, inside)
			if most == test.want && inside == test.want {
				select {
				case <-full:
				default:
					close(full)
				}
			}
			mu.Unlock()
			// The first calls wait for each other, so fewer would time out.
			select {
			case <-full:
			case <-time.After(20 * time.Second):
				t.Errorf("%+v: too few concurrent calls", test)
			}
			mu.Lock()
			inside--
			mu.Unlock()
			return nil
		}
		var to bytestore.Store = disk
		if test.remote > 0 {
			to = remote{&hooked{Store: disk}, test.remote}
		}
		_, summary, err := run(t, &transfer.Copy{From: source, To: to, Concurrency: test.concurrency})
		if err != nil || !summary.Complete() || most != test.want {
			t.Errorf("%+v: %d concurrent calls, %+v, %v", test, most, summary, err)
		}
	}
}

// TestRate: all files together are read within the rate.
func TestRate(t *testing.T) {
	t.Parallel()
	nars := files{}
	for n := range 8 {
		nars[name(n)] = string(make([]byte, 10_000))
	}
	from, _ := opened(t, nars)
	to, target := opened(t, nil)
	synctest.Test(t, func(t *testing.T) {
		begin := time.Now()
		var mu sync.Mutex
		moved := int64(0)
		job := &transfer.Copy{From: from, To: to, Rate: 1000, Moved: func(bytes int64) {
			mu.Lock()
			defer mu.Unlock()
			moved += bytes
		}}
		_, summary, err := run(t, job)
		// Each reader may be ahead by one read.
		if took := time.Since(begin); err != nil || !summary.Complete() || took < 79*time.Second || took > 81*time.Second {
			t.Errorf("%v, %+v, %v", took, summary, err)
		}
		if moved != 80_000 {
			t.Errorf("%d bytes moved", moved)
		}
	})
	wantFiles(t, target, nars)
	// A reader that waits can be cancelled.
	again, _ := opened(t, nil)
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		begin := time.Now()
		_, summary, err := copied(t, ctx, &transfer.Copy{From: from, To: again, Rate: 10})
		if !errors.Is(err, context.DeadlineExceeded) || time.Since(begin) != 5*time.Second || summary.Files[transfer.Copied] != 0 {
			t.Errorf("%v, %+v, %v", time.Since(begin), summary, err)
		}
	})
}
