package mirror

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"nar-herder/peer"
	"nar-herder/storage/index"
)

// TestEarlyMemory: changes that are held back until it is known that none is missing
// are bounded in bytes. It does not run beside other tests, as it looks at the memory
// of the process.
func TestEarlyMemory(t *testing.T) {
	const each, count, most = 32 << 10, 5000, 90 << 20 // 160 MiB in all
	held := func() uint64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	source := newInstance(t)
	before := held()
	during := make(chan uint64, 1)
	source.through(func(w http.ResponseWriter, r *http.Request) bool {
		text := strings.Repeat("x", each)
		_, err := io.WriteString(w, `{"recent_changes":[`)
		for n := 0; err == nil && n < count; n++ {
			_, err = fmt.Fprintf(w, `{"datetime":"2026-01-01 00:00:00","change":"addition","data":"%d%s"},`, n, text)
		}
		during <- held() // the mirror has read all but what the connection holds
		_, _ = io.WriteString(w, `{}]}`)
		return true
	})
	m := mirrorOf2(t, newInstance(t), source, filepath.Join(t.TempDir(), "download"))
	_, err := m.pollPlain(t.Context(), place{Since: at(0), Seen: seen{fingerprint{1}: at(0)}})
	if !errors.Is(err, errNoAnchor) {
		t.Error(err)
	}
	if during := <-during; during > before+most {
		t.Errorf("%d MiB are held", (during-before)>>20)
	}
}

// TestLongRows: rows that are made ready ahead are bounded in bytes.
func TestLongRows(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		read := 0
		rows := func(yield func(int, error) bool) {
			for read = range 2000 {
				if !yield(read, nil) {
					return
				}
			}
		}
		hold, odd := make(chan struct{}), errors.New("odd")
		done := make(chan error)
		go func() {
			b := &building{log: slog.New(slog.DiscardHandler), doing: func(string) {}, count: 1 << 30}
			done <- run(t.Context(), b, nil, rows, func(int) int { return 1 << 20 }, func(int) (index.Row, error) {
				<-hold
				return index.Row{}, odd
			})
		}()
		synctest.Wait()
		if most := (lotsAhead + runtime.GOMAXPROCS(0) + 3) * batchBytes >> 20; read > most {
			t.Errorf("%d MiB of rows were read ahead, want %d at the most", read, most)
		}
		close(hold)
		if err := <-done; err != nil || read != 1999 {
			t.Errorf("%d rows, %v", read+1, err)
		}
	})
}

// TestMostSeen: the changes that are remembered, since they come again, are bounded.
func TestMostSeen(t *testing.T) {
	t.Parallel()
	m := mirrorOf2(t, newInstance(t), newInstance(t), filepath.Join(t.TempDir(), "download"))
	from := place{Since: at(0), Seen: make(seen)}
	for n := range 250_000 {
		from.Seen[fingerprint{byte(n), byte(n >> 8), byte(n >> 16)}] = at(0)
	}
	change := peer.Change{Datetime: at(0).Format(time.DateTime), Change: peer.Removal, Data: testPath(1).String()}
	p := &plainPoll{m: m, ctx: t.Context(), at: from, fresh: make(seen), told: map[fingerprint]struct{}{fingerprintOf(change): {}}}
	p.begin()
	err := p.take(change)
	if err == nil {
		err = p.flush()
	}
	if err == nil || len(p.at.Seen) > 250_000 {
		t.Errorf("%d changes are remembered, %v", len(p.at.Seen), err)
	}
}
