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

// lying is a directory whose Open tells another size.
type lying struct {
	*directory.Directory
	more int64
}

func (l *lying) Open(ctx context.Context, name string, offset, length int64) (io.ReadCloser, bytestore.Info, error) {
	body, info, err := l.Directory.Open(ctx, name, offset, length)
	info.Size += l.more
	return body, info, err
}

// TestDistantListed lists a target that is far away once there is much to ask it,
// and never before.
func TestDistantListed(t *testing.T) {
	t.Parallel()
	nars := some(2600)
	from, _ := opened(t, nars)
	there := files{}
	for n := range 2500 {
		there[name(n)] = nars[name(n)]
	}
	there[name(2550)] = "another"
	disk, target := opened(t, there)
	to := distant{&hooked{Store: disk}, 16}
	var told []int64
	job := &transfer.Copy{From: from, To: to, Items: itemsOf(t, nars), Decode: decode, Listed: func(files int64) { told = append(told, files) }}
	_, summary, err := run(t, job)
	if err != nil || summary.Files[transfer.There] != 2500 || summary.Files[transfer.Copied] != 100 || summary.Replaced != 1 {
		t.Errorf("%+v, %v", summary, err)
	}
	if stats, lists := to.count("stat"), to.count("list"); stats > 2000 || stats < 1900 || lists != 1 || to.count("flush") != 0 {
		t.Errorf("%d looks, %d listings", stats, lists)
	}
	if len(told) != 2 || told[0] != 1000 || told[1] != 2000 {
		t.Errorf("told %v", told)
	}
	wantFiles(t, target, nars)

	small, _ := opened(t, some(50))
	to = distant{&hooked{Store: disk}, 16}
	if _, summary, err := run(t, &transfer.Copy{From: small, To: to}); err != nil || summary.Files[transfer.There] != 50 || to.count("list") != 0 {
		t.Errorf("%+v, %v, %d listings", summary, err, to.count("list"))
	}
}

// TestDistantUnlisted has the listing fail: in part, and those files are looked
// for; or as a whole, and that is the end.
func TestDistantUnlisted(t *testing.T) {
	t.Parallel()
	nars := some(2100)
	from, _ := opened(t, nars)
	disk, target := opened(t, nars)
	to := distant{&hooked{Store: disk}, 16}
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

// TestAtOnce has as many files copied at a time as is asked for, or as is good
// for the stores, and no more.
func TestAtOnce(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		distant, asked, want int
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
			// The first ones wait for each other: fewer would wait in vain.
			select {
			case <-full:
			case <-time.After(20 * time.Second):
				t.Errorf("%+v: too few at a time", test)
			}
			mu.Lock()
			inside--
			mu.Unlock()
			return nil
		}
		var to bytestore.Store = disk
		if test.distant > 0 {
			to = distant{&hooked{Store: disk}, test.distant}
		}
		_, summary, err := run(t, &transfer.Copy{From: source, To: to, Concurrency: test.asked})
		if err != nil || !summary.Complete() || most != test.want {
			t.Errorf("%+v: %d at once, %+v, %v", test, most, summary, err)
		}
	}
}

// TestRate reads no faster than it may, all files together.
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
		// Each reader may be ahead by what it reads at a time.
		if took := time.Since(begin); err != nil || !summary.Complete() || took < 79*time.Second || took > 81*time.Second {
			t.Errorf("%v, %+v, %v", took, summary, err)
		}
		if moved != 80_000 {
			t.Errorf("%d bytes moved", moved)
		}
	})
	wantFiles(t, target, nars)
	// One that waits can be ended.
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
