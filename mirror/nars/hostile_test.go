package nars

import (
	"context"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"testing"

	"nar-herder/narinfo"
)

// offsetOf returns the offset that a request asks for.
func offsetOf(r *http.Request) (offset int) {
	_, _ = fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-", &offset)
	return offset
}

// sendPart sends up to length bytes from the requested offset, and cuts the connection.
func sendPart(w http.ResponseWriter, r *http.Request, content []byte, length int) {
	offset := offsetOf(r)
	w.Header().Set("Content-Length", strconv.Itoa(len(content)-offset))
	if offset > 0 {
		w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", offset, len(content)-1, len(content)))
		w.WriteHeader(http.StatusPartialContent)
	}
	_, _ = w.Write(content[offset:min(len(content), offset+length)])
}

// TestTinyAnswers: a source that cuts each answer after a few bytes ends a fetch soon. The
// partial download is kept.
func TestTinyAnswers(t *testing.T) {
	t.Parallel()
	item := spec{n: 1, size: 300_000, kinds: []string{"none"}}.make(t)
	content := item.files[item.names[0]]
	from := newSource(t)
	from.first(item.names[0], repeat(2000, func(w http.ResponseWriter, r *http.Request) { sendPart(w, r, content, 150) })...)
	m := newMirror(t, item)
	f := m.fetcher(from, Options{All: true, AtOnce: 1})
	err := f.fetchFile(t.Context(), m.item(item), 0)
	if err == nil || failures(t, f, "source") != 1 {
		t.Errorf("%v, %d failures", err, failures(t, f, "source"))
	}
	if asked := from.asked(); len(asked) > maxCuts+2 {
		t.Errorf("%d requests, up to %s", len(asked), asked[len(asked)-1])
	}
	// A bad connection, with some bytes in each answer, still completes the nar.
	from.mu.Lock()
	from.answers[item.names[0]] = repeat(3, func(w http.ResponseWriter, r *http.Request) { sendPart(w, r, content, 80_000) })
	from.files = item.files
	from.mu.Unlock()
	f.Wanted([]narinfo.PathHash{item.hash()})
	run(t, f)
	m.wantStored(item)
	if asked := from.asked(); !strings.HasSuffix(asked[len(asked)-1], "-") {
		t.Errorf("it does not resume: %s", asked[len(asked)-1])
	}
}

// repeat repeats an answer.
func repeat(count int, answer http.HandlerFunc) (answers []http.HandlerFunc) {
	for range count {
		answers = append(answers, answer)
	}
	return answers
}

// unsizedItem is an item without FileSize, and optionally without NarSize.
func unsizedItem(t *testing.T, n, size int, narSize bool) *made {
	t.Helper()
	item := spec{n: n, size: size, unsized: true}.make(t)
	if !narSize {
		var kept strings.Builder
		for line := range strings.Lines(item.text) {
			if !strings.HasPrefix(line, "NarSize") {
				kept.WriteString(line)
			}
		}
		item.text = kept.String()
	}
	return item
}

// TestUnsizedWithinLimits: if narinfos lack sizes, the source's sizes are compared with the
// limits before anything is written.
func TestUnsizedWithinLimits(t *testing.T) {
	t.Parallel()
	for name, limit := range map[string]func(*testing.T, *mirror, *Options){
		"storage limit": func(_ *testing.T, _ *mirror, o *Options) { o.Limit = 300_000 },
		"hard limit": func(t *testing.T, m *mirror, _ *Options) {
			if err := m.SetHardLimit(t.Context(), 300_000); err != nil {
				t.Fatal(err)
			}
		},
	} {
		for _, narSize := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, NarSize %v", name, narSize), func(t *testing.T) {
				t.Parallel()
				large, small := unsizedItem(t, 1, 400_000, narSize), unsizedItem(t, 2, 100_000, narSize)
				from := newSource(t, large, small)
				m := newMirror(t, large, small)
				options := Options{All: true, AtOnce: 1}
				limit(t, m, &options)
				f := m.fetcher(from, options)
				if err := f.fetchFile(t.Context(), m.item(large), 0); err == nil || m.stored(large) {
					t.Errorf("stored above the limit, %v", err)
				}
				if spooled := m.spooled(); len(spooled) != 0 {
					t.Errorf("in the spool: %v", spooled)
				}
				// A client still gets it.
				read(t, f, m.item(large), large.files[large.names[0]])
				if err := f.fetchFile(t.Context(), m.item(small), 0); err != nil {
					t.Error(err)
				}
				m.wantStored(small)
				if coming := f.room.Coming(); coming != 0 {
					t.Errorf("%d bytes are coming", coming)
				}
				m.wantConsistent()
			})
		}
	}
}

// TestTooLargeForItsNar: nothing is written of a file that is longer, by the narinfo or by
// the source, than any compression of the nar.
func TestTooLargeForItsNar(t *testing.T) {
	t.Parallel()
	claims := func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", strconv.Itoa(1<<40))
		_, _ = w.Write(make([]byte, 1<<20))
	}
	sized := spec{n: 1, size: 100_000}.make(t)
	sized.text = strings.Replace(sized.text, "FileSize: ", "FileSize: 9", 1)
	for _, item := range []*made{sized, unsizedItem(t, 2, 100_000, true), unsizedItem(t, 3, 100_000, false)} {
		from := newSource(t)
		from.first(item.names[0], repeat(10, claims)...)
		m := newMirror(t, item)
		f := m.fetcher(from, Options{All: true})
		if err := f.fetchFile(t.Context(), m.item(item), 0); err == nil || failures(t, f, "wrong") != 1 {
			t.Errorf("%s: %v, %d failures", item.text, err, failures(t, f, "wrong"))
		}
		if spooled := m.spooled(); len(spooled) != 0 {
			t.Errorf("in the spool: %v", spooled)
		}
	}
}

// TestPartialWithinLimits: partial downloads in the spool count for the limit, also after
// a restart.
func TestPartialWithinLimits(t *testing.T) {
	t.Parallel()
	const size, limit = 200_000, 1_000_000
	var items []*made
	for n := range 20 {
		items = append(items, spec{n: n, size: size, kinds: []string{"none"}}.make(t))
	}
	from := newSource(t)
	for _, item := range items {
		from.first(item.names[0], repeat(50, func(w http.ResponseWriter, r *http.Request) {
			sendPart(w, r, item.files[item.names[0]], size-1-offsetOf(r))
		})...)
	}
	m := newMirror(t, items...)
	for range 2 {
		f := m.fetcher(from, Options{All: true, Limit: limit})
		if err := f.spool.DropStale(t.Context()); err != nil {
			t.Fatal(err)
		}
		for _, item := range items {
			if err := f.fetchFile(t.Context(), m.item(item), 0); err == nil {
				t.Fatal("it is stored")
			}
		}
		total := int64(0)
		for _, size := range m.spooled() {
			total += size
		}
		if total > limit || total == 0 {
			t.Errorf("%d bytes in the spool where %d are allowed", total, limit)
		}
		f.Close()
	}
}

// TestRetainCancelled: a partial download stays in the spool if it is unknown whether there
// is room, as when the process stops.
func TestRetainCancelled(t *testing.T) {
	t.Parallel()
	m := newMirror(t)
	f := m.fetcher(newSource(t), Options{All: true, Limit: 1000, Usage: func(ctx context.Context) (int64, error) { return 0, ctx.Err() }})
	defer f.Close()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if !f.spool.Retain(ctx, "key", 1) {
		t.Error("it is dropped after another failure than that of room")
	}
	if f.spool.Retain(t.Context(), "key", 2000) {
		t.Error("it is kept without room")
	}
}
