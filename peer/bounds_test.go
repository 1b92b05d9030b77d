package peer

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"runtime"
	"strings"
	"testing"

	"nar-herder/storage"
)

// allocated returns the number of bytes that f allocates. It measures the whole process, so
// tests that use it don't run in parallel.
func allocated(f func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}

// repeated writes a text repeatedly until the reader stops.
func repeated(w io.Writer, begin, text string, size int, end string) {
	chunk := []byte(strings.Repeat(text, 1+(64<<10)/len(text)))
	_, err := io.WriteString(w, begin)
	for ; err == nil && size > 0; size -= len(chunk) {
		_, err = w.Write(chunk)
	}
	_, _ = io.WriteString(w, strings.TrimSuffix(text, ",")+end)
}

// TestAnswerMemory: the memory for an answer is bounded by that of an honest one, not by
// its length.
func TestAnswerMemory(t *testing.T) {
	const size, most = 16 << 20, 96 << 20 // decoded at once, each takes over 200 MB
	bigText := `{"datetime":"` + strings.Repeat("x", 1000) + `","mark":"` + strings.Repeat("y", 1000) + `"},`
	tests := map[string]struct {
		begin, text, end string
	}{
		"empty changes":      {`{"instance":"x","recent_changes":[`, `{},`, `]}`},
		"changes in front":   {`{"recent_changes":[`, `{},`, `],"instance":"x"}`},
		"long changes":       {`{"instance":"x","recent_changes":[`, bigText, `]}`},
		"chain":              {`{"instance":"x","chain":[`, `"",`, `],"recent_changes":[]}`},
		"lists of changes":   {`{"instance":"x",`, `"recent_changes":[],`, `"recent_changes":[]}`},
		"keys":               {`{"instance":"x",`, `"a":{},`, `"recent_changes":[]}`},
		"nesting":            {`{"instance":"x","a":`, `[`, `]}`},
		"nesting in changes": {`{"instance":"x","recent_changes":[`, `[`, `]}`},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			front := serve(t, func(w http.ResponseWriter, r *http.Request) {
				repeated(w, test.begin, test.text, size, test.end)
			})
			p := newPeer(t, front.URL, Self{})
			var err error
			took := allocated(func() { _, err = p.ChangesAfter(t.Context(), Known{}) })
			if err == nil {
				t.Error("it was accepted")
			}
			if took > most {
				t.Errorf("%d MiB of memory for %d MiB: %v", took>>20, size>>20, err)
			}
		})
	}
	t.Run("changes in order", func(t *testing.T) {
		front := serve(t, func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.WriteString(w, `{"instance":"x","recent_changes":[`)
			separator := ""
			for n, sent := 1, 0; sent < size; n++ {
				text := fmt.Sprintf(`%s{"id":%d,"previous":%d}`, separator, n, n-1)
				if _, err := io.WriteString(w, text); err != nil {
					return
				}
				separator, sent = ",", sent+len(text)
			}
			_, _ = io.WriteString(w, `]}`)
		})
		p := newPeer(t, front.URL, Self{})
		var err error
		took := allocated(func() { _, err = p.ChangesAfter(t.Context(), Known{}) })
		if !errors.Is(err, ErrAnswer) {
			t.Error(err)
		}
		if took > most {
			t.Errorf("%d MiB of memory for %d MiB: %v", took>>20, size>>20, err)
		}
	})
	t.Run("state", func(t *testing.T) {
		front := serve(t, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "text/event-stream")
			repeated(w, "event: state\ndata: {\"instance\":\"x\",\"chain\":[", `"",`, 10<<20, "]}\n\n")
		})
		p := newPeer(t, front.URL, Self{})
		var err error
		took := allocated(func() { _, err = p.Changes(t.Context(), Known{}) })
		if !errors.Is(err, ErrAnswer) {
			t.Error(err)
		}
		if took > most {
			t.Errorf("%d MiB of memory for a state: %v", took>>20, err)
		}
	})
	for name, text := range map[string]string{"nars": `{},`, "files": `{"files":[{},{},{},{},{},{},{},{},{},{}]},`} {
		t.Run(name, func(t *testing.T) {
			item := testItem(t, 1)
			var body bytes.Buffer
			repeated(&body, `{"nonce":"N","instance":"x","storage":"y","nars":[`, text, mostAnswer-1<<20, "]}")
			p := newPeer(t, "http://peer.example", Self{})
			var err error
			took := allocated(func() { _, _, err = p.judgeReply(body.Bytes(), "N", []*storage.Item{item}, "own") })
			if !errors.Is(err, ErrAnswer) {
				t.Error(err)
			}
			if took > 32<<20 {
				t.Errorf("%d MiB of memory for %d bytes", took>>20, body.Len())
			}
		})
	}
}
