package nars

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"nar-herder/narinfo"
	"nar-herder/removal/deletion"
	"nar-herder/storage"
	"nar-herder/storage/directory"
	"nar-herder/storage/index"
)

// count returns how many of the items are stored.
func (m *mirror) count(items []*made) (count int) {
	m.t.Helper()
	for _, of := range items {
		if m.stored(of) {
			count++
		}
	}
	return count
}

// onDisk returns the disk usage of all files.
func (m *mirror) onDisk() int64 {
	m.t.Helper()
	if err := m.Scan(context.Background()); err != nil {
		m.t.Fatal(err)
	}
	usage, _, err := m.Usage(context.Background())
	if err != nil {
		m.t.Fatal(err)
	}
	return usage
}

// evict deletes nars, like a remover that keeps a limit.
func (m *mirror) evict(items ...*made) {
	m.t.Helper()
	since, err := m.index.LastChange(m.t.Context())
	if err != nil {
		m.t.Fatal(err)
	}
	var known []*storage.Item
	for _, of := range items {
		known = append(known, m.item(of))
	}
	_, freed, err := deletion.Evict(m.t.Context(), m.Storage, known, since, func(*index.Tx, map[narinfo.PathHash]index.ChangeKind) error { return nil })
	if err != nil || freed.Items != len(items) {
		m.t.Fatal(freed, err)
	}
}

// TestLimit: nars are fetched up to the limit, the latest first, and never more. An evicted
// nar is not fetched again while it would exceed the limit.
func TestLimit(t *testing.T) {
	t.Parallel()
	const size, limit = 100_000, 1_000_000
	items := many(t, 20, size)
	from := newSource(t, items...)
	m := newMirror(t, items...)
	var looks atomic.Int32
	f := m.fetcher(from, Options{All: true, AtOnce: 1, Limit: limit, Usage: func(ctx context.Context) (int64, error) {
		looks.Add(1)
		usage, _, err := m.Usage(ctx)
		return usage, err
	}})
	run(t, f)
	until(t, "the pass to end", func() bool {
		return strings.Contains(m.log.String(), "finished a pass") && f.Status().InFlight == 0 && m.count(items) > 0
	})
	// Each takes one or two kilobytes more than its length.
	until(t, "nine are stored", func() bool { return m.count(items) == 9 })
	for _, of := range items[11:] {
		if !m.stored(of) {
			t.Errorf("%s is not stored, and is one of the latest", of.base())
		}
	}
	if usage := m.onDisk(); usage > limit {
		t.Errorf("%d bytes of %d", usage, limit)
	}
	m.wantConsistent()
	if !strings.Contains(m.log.String(), "there is no room in the storage") {
		t.Error("the log does not tell")
	}
	for _, reason := range reasons {
		if got := failures(t, f, reason); got != 0 {
			t.Errorf("%d failures for the reason %s", got, reason)
		}
	}
	// An import exceeds the limit, and the remover gets below it.
	imported := spec{n: 50, size: size}.make(t)
	m.add(imported)
	write(t, m.dir+"/"+imported.names[0], imported.files[imported.names[0]])
	if err := m.Adopt(t.Context(), m.item(imported), 0, decode); err != nil {
		t.Fatal(err)
	}
	m.evict(items[19])
	before := len(from.asked())
	// It is checked repeatedly meanwhile.
	looked := looks.Load()
	f.Wanted([]narinfo.PathHash{items[19].hash(), items[0].hash()})
	until(t, "it is looked at", func() bool { return looks.Load() > looked+10 })
	if got := from.asked()[before:]; len(got) != 0 {
		t.Errorf("requests %q", got)
	}
	// A client gets it, and it is stored because there is room.
	read(t, f, m.item(items[5]), items[5].files[items[5].names[0]])
	// When more are removed, others are fetched.
	m.evict(items[15], items[16], items[17], items[18])
	until(t, "others come", func() bool { return m.count(items) >= 8 && f.Status().InFlight == 0 })
	if usage := m.onDisk(); usage > limit {
		t.Errorf("%d bytes of %d", usage, limit)
	}
}

// TestNoRoomForClients: a nar without room is passed on to the client, and nothing of it is
// stored.
func TestNoRoomForClients(t *testing.T) {
	t.Parallel()
	item := spec{n: 1, size: 100_000}.make(t)
	from := newSource(t, item)
	m := newMirror(t, item)
	f := m.fetcher(from, Options{Limit: 50_000})
	read(t, f, m.item(item), item.files[item.names[0]])
	if m.stored(item) || len(m.spooled()) != 0 || f.room.Coming() != 0 {
		t.Errorf("stored %v, spool %v, %d coming", m.stored(item), m.spooled(), f.room.Coming())
	}
}

// TestHardLimit: downloads keep the hard limit, like imports.
func TestHardLimit(t *testing.T) {
	t.Parallel()
	items := many(t, 10, 100_000)
	from := newSource(t, items...)
	m := newMirror(t, items...)
	if err := m.SetHardLimit(t.Context(), 350_000); err != nil {
		t.Fatal(err)
	}
	f := m.fetcher(from, Options{All: true})
	run(t, f)
	until(t, "it is refused", func() bool { return failures(t, f, "full") > 2 })
	until(t, "three are stored, as many as fit", func() bool { return m.count(items) == 3 && f.Status().InFlight == 0 })
	read(t, f, m.item(items[0]), items[0].files[items[0].names[0]])
	if len(f.Warnings()) == 0 && f.Status().Paused {
		t.Error("no warnings")
	}
	if err := m.SetHardLimit(t.Context(), -1); err != nil {
		t.Fatal(err)
	}
	m.wantStored(items...)
	m.wantConsistent()
}

// TestBandwidth: a download that no client waits for is limited, until a client waits for
// it.
func TestBandwidth(t *testing.T) {
	t.Parallel()
	const rate = 100_000
	items := many(t, 2, 10_000)
	large := spec{n: 10, size: 20 * rate, kinds: []string{"none"}}.make(t)
	from := newSource(t, append(items, large)...)
	m := newMirror(t, items...)
	f := m.patient(from, Options{All: true, Bandwidth: rate})
	begun := time.Now()
	stop := run(t, f)
	m.wantStored(items...)
	// The first tenth of a second's worth comes at once.
	if took := time.Since(begun); took < 80*time.Millisecond {
		t.Errorf("20 kB at 100 kB a second took %v", took)
	}
	stop()
	m.add(large)
	run(t, f)
	f.Wanted([]narinfo.PathHash{large.hash()})
	until(t, "it comes", func() bool { return f.Status().InFlight == 1 })
	begun = time.Now()
	read(t, f, m.item(large), large.files[large.names[0]])
	if took := time.Since(begun); took > 10*time.Second {
		t.Errorf("a client had to wait %v", took)
	}
	m.wantStored(large)
}

// TestUnsized: neither the narinfo nor the source says how long a file is, as for a nar that is
// compressed while it is sent. It is streamed to clients and stored, if the narinfo says how
// long the nar is.
func TestUnsized(t *testing.T) {
	t.Parallel()
	for _, size := range []int{1000, tail, 500_000} {
		for _, narSize := range []bool{true, false} {
			t.Run(fmt.Sprintf("%d bytes, NarSize %v", size, narSize), func(t *testing.T) {
				t.Parallel()
				item := unsizedItem(t, 1, size, narSize)
				content := item.files[item.names[0]]
				from := newSource(t, item)
				half, open := make(chan struct{}), make(chan struct{})
				chunks := func(w http.ResponseWriter, _ *http.Request) {
					_, _ = w.Write(content[:len(content)-100])
					w.(http.Flusher).Flush()
					close(half)
					<-open
					_, _ = w.Write(content[len(content)-100:])
				}
				from.first(item.names[0], chunks)
				m := newMirror(t, item)
				f := m.patient(from, Options{})
				if !narSize || size <= tail {
					close(open)
				}
				body, got, err := f.OpenFile(t.Context(), m.item(item), 0, 0, -1, nil)
				if err != nil || got >= 0 && got != int64(len(content)) {
					t.Fatal(got, err)
				}
				defer body.Close()
				if narSize && size > tail { // it is streamed before its end has come
					begin := make([]byte, len(content)-100-tail)
					if _, err := io.ReadFull(body, begin); err != nil || !bytes.Equal(begin, content[:len(begin)]) {
						t.Errorf("the beginning: %v", err)
					}
					content = content[len(begin):]
					close(open)
				}
				if got, err := io.ReadAll(body); err != nil || !bytes.Equal(got, content) {
					t.Errorf("%d bytes, %v, want %d", len(got), err, len(content))
				}
				if got, want := failures(t, f, "local"), map[bool]int{false: 1, true: 0}[narSize]; got != want {
					t.Errorf("%d failures, want %d: %+v", got, want, f.Status())
				}
				run(t, f)
				m.wantStored(item) // without NarSize, because the source sends the size now
				if got, want := len(from.asked()), map[bool]int{false: 3, true: 1}[narSize]; got != want {
					t.Errorf("%d requests, want %d", got, want)
				}
				until(t, "nothing is in download", func() bool { return f.Status().InFlight == 0 })
				if coming := f.room.Coming(); coming != 0 {
					t.Errorf("%d bytes are coming", coming)
				}
				m.wantConsistent()
			})
		}
	}
}

// TestUnsizedFaults: an answer of unknown length is cut, goes on for ever, or is wrong.
func TestUnsizedFaults(t *testing.T) {
	t.Parallel()
	item := unsizedItem(t, 1, 300_000, true)
	content := item.files[item.names[0]]
	send := func(w http.ResponseWriter, parts ...[]byte) {
		for _, part := range parts {
			_, _ = w.Write(part)
			w.(http.Flusher).Flush()
		}
	}
	wrong := bytes.Clone(content)
	wrong[len(wrong)-1] ^= 1
	for name, test := range map[string]struct {
		answer func(w http.ResponseWriter)
		reason string // "" if it is fetched in spite of the fault
	}{
		"cut": {func(w http.ResponseWriter) {
			send(w, content[:200_000])
			panic(http.ErrAbortHandler)
		}, ""},
		"short":      {func(w http.ResponseWriter) { send(w, content[:200_000]) }, "wrong"},
		"wrong":      {func(w http.ResponseWriter) { send(w, wrong) }, "wrong"},
		"longer":     {func(w http.ResponseWriter) { send(w, content, []byte("x")) }, "wrong"},
		"for ever":   {func(w http.ResponseWriter) { send(w, content, make([]byte, 1<<20)) }, "wrong"},
		"only zeros": {func(w http.ResponseWriter) { send(w, make([]byte, 1<<20)) }, "wrong"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			from := newSource(t, item)
			from.first(item.names[0], func(w http.ResponseWriter, _ *http.Request) { test.answer(w) })
			m := newMirror(t, item)
			f := m.fetcher(from, Options{})
			err := f.fetchFile(t.Context(), m.item(item), 0)
			if (err == nil) != (test.reason == "") || test.reason != "" && failures(t, f, test.reason) != 1 {
				t.Errorf("%v, %+v", err, f.Status())
			}
			if test.reason != "" && len(m.spooled()) != 0 {
				t.Errorf("in the spool: %v", m.spooled())
			}
			read(t, f, m.item(item), content)
			m.wantStored(item)
			m.wantConsistent()
		})
	}
}

// TestForgotten: forgotten failures are found by the next pass.
func TestForgotten(t *testing.T) {
	t.Parallel()
	item := spec{n: 1, size: 100}.make(t)
	from := newSource(t)
	m := newMirror(t, item)
	f := m.fetcher(from, Options{All: true})
	f.timing.absentRetry = time.Hour
	run(t, f)
	until(t, "it is looked for", func() bool { return failures(t, f, "absent") == 1 })
	f.queue.ForgetRetries()
	from.mu.Lock()
	from.files = item.files
	from.mu.Unlock()
	f.rouse()
	m.wantStored(item)
}

// TestUnmounted: nothing is written to an empty directory where the storage should be
// mounted, and clients still get nars.
func TestUnmounted(t *testing.T) {
	t.Parallel()
	items := many(t, 3, 1000)
	from := newSource(t, items...)
	m := newMirror(t, items...)
	f := m.fetcher(from, Options{})
	read(t, f, m.item(items[0]), items[0].files[items[0].names[0]])
	m.wantStored(items[0])
	f.Close()
	unmounted := &mirror{t: t, dir: t.TempDir(), index: m.index, log: m.log}
	store, err := directory.Open(unmounted.dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { store.Close() })
	unmounted.Storage = storage.New(m.index, store, storage.Options{})
	f = unmounted.fetcher(from, Options{All: true})
	read(t, f, m.item(items[1]), items[1].files[items[1].names[0]])
	run(t, f)
	until(t, "it is noticed", func() bool { return failures(t, f, "local") > 3 })
	if !strings.Contains(m.log.String(), "is it mounted?") || len(f.Warnings()) == 0 && f.Status().Paused {
		t.Errorf("%+v", f.Status())
	}
	if text := f.Status().LastError; strings.Contains(text, unmounted.dir) || !strings.Contains(text, "this machine") {
		t.Errorf("the health tells %q", text)
	}
	f.Close()
	entries, err := os.ReadDir(unmounted.dir)
	if err != nil || len(entries) != 0 {
		t.Errorf("%v, %v", entries, err)
	}
}
