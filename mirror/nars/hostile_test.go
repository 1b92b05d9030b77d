package nars

import (
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"testing"

	"nar-herder/narinfo"
)

// offsetOf is where a request wants a file to begin.
func offsetOf(r *http.Request) (offset int) {
	_, _ = fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-", &offset)
	return offset
}

// sendPart answers with the content from where it is wanted, up to length bytes, and
// cuts the connection.
func sendPart(w http.ResponseWriter, r *http.Request, content []byte, length int) {
	offset := offsetOf(r)
	w.Header().Set("Content-Length", strconv.Itoa(len(content)-offset))
	if offset > 0 {
		w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", offset, len(content)-1, len(content)))
		w.WriteHeader(http.StatusPartialContent)
	}
	_, _ = w.Write(content[offset:min(len(content), offset+length)])
}

// TestCrumbs has a source that cuts each answer after a few bytes: that ends a fetch
// soon, and what has come stays for the next.
func TestCrumbs(t *testing.T) {
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
	if asked := from.asked(); len(asked) > mostCuts+2 {
		t.Errorf("%d requests, up to %s", len(asked), asked[len(asked)-1])
	}
	// A bad line, on which some of it comes each time, brings it all the same.
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

// repeat is an answer so many times.
func repeat(count int, answer http.HandlerFunc) (answers []http.HandlerFunc) {
	for range count {
		answers = append(answers, answer)
	}
	return answers
}
