package nars

import (
	"bytes"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"nar-herder/mirror/nars/spool"
	"nar-herder/narinfo"
)

// TestAll: all missing nars are fetched, the latest first, and later ones too.
func TestAll(t *testing.T) {
	t.Parallel()
	items := many(t, 20, 1000)
	items = append(items,
		spec{n: 100, size: 300_000, kinds: []string{"none"}}.make(t),
		spec{n: 101, size: 300_000, kinds: []string{"lzip", "zstd", "none"}}.make(t),
		spec{n: 102, size: 200_000, unsized: true}.make(t),
		spec{n: 103, size: 0}.make(t),
	)
	later := spec{n: 200, size: 100}.make(t)
	from := newSource(t, append(items, later)...)
	m := newMirror(t, items...)
	f := m.fetcher(from, Options{All: true, AtOnce: 1})
	run(t, f)
	m.wantStored(items...)
	m.add(later)
	f.Wanted([]narinfo.PathHash{later.hash()})
	m.wantStored(later)
	until(t, "nothing is in download", func() bool { return f.Status().InFlight == 0 })
	m.wantConsistent()
	asked := from.asked()
	if len(asked) != 27 || asked[0] != "nar/gzip/"+items[23].base() || asked[26] != later.names[0] {
		t.Errorf("%d requests, the latest item should come first: %q", len(asked), asked)
	}
	if got := counted(t, f, "narherder_mirror_nars_fetched_total", ""); got != 27 {
		t.Errorf("%v nars counted", got)
	}
	until(t, "nothing is missing", func() bool { return f.Status().Missing == 0 })
	if status := f.Status(); status.LastSuccess.IsZero() || status.LastError != "" || len(f.Warnings()) != 0 {
		t.Errorf("%+v", status)
	}
}

// answers are ways in which a source can fail once.
func answers(content []byte) map[string]struct {
	first  []http.HandlerFunc
	reason string // of the failure; "" if the download resumes, or any
} {
	whole := strconv.Itoa(len(content))
	status := func(code int) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(code) }
	}
	// part sends the beginning of an answer.
	part := func(w http.ResponseWriter, length int) {
		w.Header().Set("Content-Length", whole)
		_, _ = w.Write(content[:length])
		w.(http.Flusher).Flush()
	}
	cut := func(w http.ResponseWriter, _ *http.Request) { part(w, len(content)/2) }
	flipped := func(at int) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			wrong := bytes.Clone(content)
			wrong[at] ^= 0x10
			http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(wrong))
		}
	}
	type answer = struct {
		first  []http.HandlerFunc
		reason string
	}
	return map[string]answer{
		"cut":       {[]http.HandlerFunc{cut}, ""},
		"cut twice": {[]http.HandlerFunc{cut, func(w http.ResponseWriter, r *http.Request) { panic(http.ErrAbortHandler) }}, ""},
		"stall": {[]http.HandlerFunc{func(w http.ResponseWriter, r *http.Request) {
			part(w, len(content)/3)
			<-r.Context().Done()
		}}, ""},
		"cut, then it knows no ranges": {[]http.HandlerFunc{cut, func(w http.ResponseWriter, _ *http.Request) { part(w, len(content)) }, func(w http.ResponseWriter, _ *http.Request) { part(w, len(content)) }}, ""},
		"cut, then 404":                {[]http.HandlerFunc{cut, status(404)}, "absent"},
		"cut, then wrong":              {[]http.HandlerFunc{cut, flipped(len(content) - 100)}, ""},
		"404":                          {[]http.HandlerFunc{status(404)}, "absent"},
		"500":                          {[]http.HandlerFunc{status(500), status(503)}, "source"},
		"flipped at the beginning":     {[]http.HandlerFunc{flipped(0)}, "wrong"},
		"flipped in the middle":        {[]http.HandlerFunc{flipped(len(content) / 2)}, "wrong"},
		"flipped at the end":           {[]http.HandlerFunc{flipped(len(content) - 1)}, "wrong"},
		"a page": {[]http.HandlerFunc{func(w http.ResponseWriter, _ *http.Request) {
			_, _ = io.WriteString(w, "<html>Please log in</html>")
		}}, "source"},
		"a page in chunks": {[]http.HandlerFunc{func(w http.ResponseWriter, _ *http.Request) {
			for range 10 {
				_, _ = io.WriteString(w, "<html>Please log in</html>")
				w.(http.Flusher).Flush()
			}
		}}, "any"}, // depends on what notices it first: the end, or the decompressor
		"a page of that length": {[]http.HandlerFunc{func(w http.ResponseWriter, _ *http.Request) {
			_, _ = w.Write(bytes.Repeat([]byte("<p>"), len(content)/3+1)[:len(content)])
		}}, "wrong"},
		"too long": {[]http.HandlerFunc{func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", strconv.Itoa(len(content)+1))
			_, _ = w.Write(append(bytes.Clone(content), 'x'))
		}}, "source"},
		"too short": {[]http.HandlerFunc{func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", strconv.Itoa(len(content)-1))
			_, _ = w.Write(content[:len(content)-1])
		}}, "source"},
	}
}

// TestFaults: each nar is wrong at first. No wrong nar is stored, and all are fetched in
// the end.
func TestFaults(t *testing.T) {
	t.Parallel()
	for _, size := range []int{1000, 200_000} {
		for _, kind := range []string{"gzip", "none"} {
			item := spec{n: 1, size: size, kinds: []string{kind}}.make(t)
			for name, test := range answers(item.files[item.names[0]]) {
				t.Run(strings.Join([]string{name, kind, strconv.Itoa(size)}, " "), func(t *testing.T) {
					t.Parallel()
					from := newSource(t, item)
					from.first(item.names[0], test.first...)
					m := newMirror(t, item)
					f := m.fetcher(from, Options{All: true})
					run(t, f)
					m.wantStored(item)
					until(t, "nothing is in download", func() bool { return f.Status().InFlight == 0 })
					m.wantConsistent()
					for _, reason := range reasons {
						if got := failures(t, f, reason); (got > 0) != (reason == test.reason) && test.reason != "any" {
							t.Errorf("%d failures for the reason %s", got, reason)
						}
					}
				})
			}
		}
	}
}

// overlap is how many bytes a resumed download fetches again to compare them.
const overlap = 64 << 10

// TestRestart: a process ends in the middle of a download, or at its end. The next resumes
// it, even if the partial file has changed.
func TestRestart(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{"gzip", "none"} {
		item := spec{n: 1, size: 500_000, kinds: []string{kind}}.make(t)
		name, content := item.names[0], item.files[item.names[0]]
		half := len(content) / 2
		for what, test := range map[string]struct {
			change func(t *testing.T, spool string)
			want   []string // requests after the restart
		}{
			"as it was": {func(*testing.T, string) {}, []string{name + " bytes=" + strconv.Itoa(half-overlap) + "-"}},
			"whole": {func(t *testing.T, spool string) {
				write(t, spool, content)
			}, nil},
			"damaged": {func(t *testing.T, spool string) {
				wrong := bytes.Clone(content[:half])
				wrong[half/2] ^= 1
				write(t, spool, wrong)
			}, []string{name + " bytes=" + strconv.Itoa(half-overlap) + "-", name}},
			"damaged and whole": {func(t *testing.T, spool string) {
				wrong := bytes.Clone(content)
				wrong[half] ^= 1
				write(t, spool, wrong)
			}, []string{name}},
			"too long": {func(t *testing.T, spool string) { write(t, spool, append(bytes.Clone(content), 'x')) }, []string{name}},
			"gone": {func(t *testing.T, spool string) {
				if err := os.Remove(spool); err != nil {
					t.Error(err)
				}
			}, []string{name}},
			"another name of what is stored": {func(t *testing.T, spool string) {
				if err := os.Link(spool, filepath.Join(filepath.Dir(spool), "other")); err != nil {
					t.Error(err)
				}
			}, []string{name}},
		} {
			t.Run(what+" "+kind, func(t *testing.T) {
				t.Parallel()
				from := newSource(t, item)
				from.first(name, func(w http.ResponseWriter, r *http.Request) {
					w.Header().Set("Content-Length", strconv.Itoa(len(content)))
					_, _ = w.Write(content[:half])
					w.(http.Flusher).Flush()
					<-r.Context().Done()
				})
				m := newMirror(t, item)
				f := m.fetcher(from, Options{All: true})
				stop := run(t, f)
				until(t, "a half has come", func() bool {
					for _, size := range m.spooled() {
						return size == int64(half)
					}
					return false
				})
				stop()
				f.Close()
				before := len(from.asked())
				var spool string
				for base := range m.spooled() {
					spool = filepath.Join(m.dir, ".nar-herder-spool", base)
				}
				test.change(t, spool)
				f = m.fetcher(from, Options{All: true})
				run(t, f)
				m.wantStored(item)
				if got := from.asked()[before:]; !slices.Equal(got, test.want) {
					t.Errorf("requests %q, want %q", got, test.want)
				}
				for _, reason := range reasons {
					if got := failures(t, f, reason); got != 0 {
						t.Errorf("%d failures for the reason %s", got, reason)
					}
				}
			})
		}
	}
}

func write(t testing.TB, name string, content []byte) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Error(err)
	}
	if err := os.WriteFile(name, content, 0o644); err != nil {
		t.Error(err)
	}
}

// TestAdopt: the right file in the storage is recorded without a download, and a wrong one
// is replaced.
func TestAdopt(t *testing.T) {
	t.Parallel()
	right, wrong, short := spec{n: 1, size: 1000}.make(t), spec{n: 2, size: 1000}.make(t), spec{n: 3, size: 1000}.make(t)
	from := newSource(t, right, wrong, short)
	m := newMirror(t, right, wrong, short)
	content := func(of *made) []byte { return bytes.Clone(of.files[of.names[0]]) }
	write(t, filepath.Join(m.dir, right.names[0]), content(right))
	damaged := content(wrong)
	damaged[500] ^= 1
	write(t, filepath.Join(m.dir, wrong.names[0]), damaged)
	write(t, filepath.Join(m.dir, short.names[0]), content(short)[:100])
	// As a process that was killed right after storing the file leaves it.
	spoolDir := filepath.Join(m.dir, ".nar-herder-spool")
	if err := os.MkdirAll(spoolDir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Link(filepath.Join(m.dir, right.names[0]), filepath.Join(spoolDir, spool.Key(m.item(right), 0))); err != nil {
		t.Fatal(err)
	}
	f := m.fetcher(from, Options{All: true, AtOnce: 1})
	run(t, f)
	m.wantStored(right, wrong, short)
	m.wantConsistent()
	if got, want := from.asked(), []string{short.names[0], wrong.names[0]}; !slices.Equal(got, want) {
		t.Errorf("requests %q, want %q", got, want)
	}
	if left := m.spooled(); len(left) != 0 {
		t.Errorf("the spool has %v", left)
	}
}

// TestStale: files in the spool that no download resumes are removed.
func TestStale(t *testing.T) {
	t.Parallel()
	stored, missing, old := spec{n: 1, size: 1000}.make(t), spec{n: 2, size: 1000}.make(t), spec{n: 3, size: 1000}.make(t)
	m := newMirror(t, stored, missing, old)
	from := newSource(t, stored, old)
	f := m.fetcher(from, Options{All: true})
	run(t, f)
	m.wantStored(stored, old)
	until(t, "their downloads have ended", func() bool { return f.Status().InFlight == 0 })
	spoolDir := filepath.Join(m.dir, ".nar-herder-spool")
	keep := spool.Key(m.item(missing), 0)
	for _, name := range []string{spool.Key(m.item(stored), 0), keep, spool.Key(m.item(missing), 0) + "x", "00000000000000000000000000000009-x", "stranger"} {
		write(t, filepath.Join(spoolDir, name), []byte("x"))
	}
	aged := filepath.Join(spoolDir, spool.Key(m.item(old), 0))
	write(t, aged, []byte("x"))
	long := time.Now().Add(-48 * time.Hour)
	if err := os.Chtimes(aged, long, long); err != nil {
		t.Fatal(err)
	}
	if err := f.spool.DropStale(t.Context()); err != nil {
		t.Fatal(err)
	}
	got := m.spooled()
	if _, ok := got[keep]; !ok || got["stranger"] != 1 || len(got) != 2 {
		t.Errorf("files left: %v", got)
	}
}
