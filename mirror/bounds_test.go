package mirror

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"nar-herder/mirror/cursor"
	"nar-herder/peer"
)

// TestEarlyMemory: changes before an anchor are bounded in bytes. It measures the memory of
// the process, so it does not run in parallel.
func TestEarlyMemory(t *testing.T) {
	const each, count, most = 32 << 10, 5000, 90 << 20 // 160 MiB in all
	inUse := func() uint64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	source := newInstance(t)
	before := inUse()
	during := make(chan uint64, 1)
	source.through(func(w http.ResponseWriter, r *http.Request) bool {
		text := strings.Repeat("x", each)
		_, err := io.WriteString(w, `{"recent_changes":[`)
		for n := 0; err == nil && n < count; n++ {
			_, err = fmt.Fprintf(w, `{"datetime":"2026-01-01 00:00:00","change":"addition","data":"%d%s"},`, n, text)
		}
		during <- inUse() // the mirror has read all but the buffers of the connection
		_, _ = io.WriteString(w, `{}]}`)
		return true
	})
	m := mirrorOf2(t, newInstance(t), source, filepath.Join(t.TempDir(), "download"))
	_, err := m.pollPlain(t.Context(), cursor.Cursor{Since: at(0), Seen: cursor.Seen{cursor.Fingerprint{1}: at(0)}})
	if !errors.Is(err, errNoAnchor) {
		t.Error(err)
	}
	if during := <-during; during > before+most {
		t.Errorf("%d MiB are in use", (during-before)>>20)
	}
}

// TestMostSeen: the remembered changes are bounded.
func TestMostSeen(t *testing.T) {
	t.Parallel()
	m := mirrorOf2(t, newInstance(t), newInstance(t), filepath.Join(t.TempDir(), "download"))
	from := cursor.Cursor{Since: at(0), Seen: make(cursor.Seen)}
	for n := range 250_000 {
		from.Seen[cursor.Fingerprint{byte(n), byte(n >> 8), byte(n >> 16)}] = at(0)
	}
	change := peer.Change{Datetime: at(0).Format(time.DateTime), Change: peer.Removal, Data: testPath(1).String()}
	p := &plainPoll{m: m, ctx: t.Context(), at: from, fresh: make(cursor.Seen), before: map[cursor.Fingerprint]struct{}{cursor.FingerprintOf(change): {}}}
	p.begin()
	err := p.take(change)
	if err == nil {
		err = p.flush()
	}
	if err == nil || len(p.at.Seen) > 250_000 {
		t.Errorf("%d changes are remembered, %v", len(p.at.Seen), err)
	}
}
