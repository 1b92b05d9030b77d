package nars

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"nar-herder/peer"
	"nar-herder/peer/failover"
	"nar-herder/peer/passing"
	"nar-herder/storage"
	"nar-herder/storage/index"
)

// from makes the fetcher use several sources.
func (f *Fetcher) from(m *mirror, sources ...*source) *Fetcher {
	m.t.Helper()
	var peers peer.Peers
	for _, s := range sources {
		base, err := url.Parse(s.URL)
		if err != nil {
			m.t.Fatal(err)
		}
		peers = append(peers, peer.New(base, peer.Self{Instance: m.Instance()}))
	}
	f.source = failover.Of(peers...)
	f.options.Passing = passing.New(f.source, 0)
	return f
}

// TestSeveralSources: the first source fails before the beginning of a nar, in its middle, or
// sends a wrong one. The client gets the nar from the second.
func TestSeveralSources(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		size int
		// first answers at the first source, whose right answer is content.
		first func(content []byte) http.HandlerFunc
		// cut says that a client that was sent bytes can't be served, and gets an error.
		cut bool
	}{
		"404": {500_000, func([]byte) http.HandlerFunc { return http.NotFound }, false},
		"500": {500_000, func([]byte) http.HandlerFunc {
			return func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusInternalServerError) }
		}, false},
		"cut in the middle": {500_000, func(content []byte) http.HandlerFunc {
			return func(w http.ResponseWriter, r *http.Request) { sendPart(w, r, content, len(content)/2) }
		}, false},
		"cut in the middle of a file that differs": {500_000, func(content []byte) http.HandlerFunc {
			other := bytes.Clone(content)
			other[len(other)/2-1] ^= 1
			return func(w http.ResponseWriter, r *http.Request) { sendPart(w, r, other, len(content)/2) }
		}, true},
		"wrong, small": {10_000, func(content []byte) http.HandlerFunc {
			other := bytes.Clone(content)
			other[len(other)/2] ^= 1
			return func(w http.ResponseWriter, r *http.Request) {
				http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(other))
			}
		}, false},
		"a page of that length": {10_000, func(content []byte) http.HandlerFunc {
			page := bytes.Repeat([]byte("<p>"), len(content)/3+1)[:len(content)]
			return func(w http.ResponseWriter, r *http.Request) {
				http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(page))
			}
		}, false},
		"wrong, large": {500_000, func(content []byte) http.HandlerFunc {
			other := bytes.Clone(content)
			other[len(other)-10] ^= 1
			return func(w http.ResponseWriter, r *http.Request) {
				http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(other))
			}
		}, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			item := spec{n: 1, size: test.size, kinds: []string{"none"}}.make(t)
			content := item.files[item.names[0]]
			a, b := newSource(t), newSource(t, item)
			a.first(item.names[0], repeat(100, test.first(content))...)
			m := newMirror(t, item)
			f := m.fetcher(a, Options{}).from(m, a, b)
			body, _, err := f.OpenFile(t.Context(), m.item(item), 0, 0, -1, nil)
			if err != nil {
				t.Fatal(err)
			}
			defer body.Close()
			got, err := io.ReadAll(body)
			switch {
			case test.cut && (err == nil || len(got) == len(content)):
				t.Errorf("%d bytes, %v", len(got), err)
			case !test.cut && (err != nil || !bytes.Equal(got, content)):
				t.Errorf("%d bytes, %v, want %d", len(got), err, len(content))
			}
			// The next client, or the first one's, gets the right one.
			read(t, f, m.item(item), content)
			m.wantStored(item)
			m.wantConsistent()
			if asked := a.asked(); len(asked) > 4 {
				t.Errorf("%d requests to the source that fails", len(asked))
			}
			if strings.Contains(name, "wrong") != strings.Contains(m.log.String(), a.URL) && name != "a page of that length" {
				t.Errorf("the log names a wrong source: %v", m.log)
			}
		})
	}
}

// TestUpstreams: of an item of an upstream, only the file that a client requests is fetched,
// and only then. Other items are fetched as well, unless the options exclude that.
func TestUpstreams(t *testing.T) {
	t.Parallel()
	ofUpstream := spec{n: 1, size: 200_000, kinds: []string{"zstd", "gzip"}}.make(t)
	mirrored := spec{n: 2, size: 1000}.make(t)
	absent := spec{n: 3, size: 1000}.make(t)
	for name, options := range map[string]Options{"mirror": {All: true}, "only upstreams": {OnlyUpstreams: true}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			from := newSource(t, ofUpstream, mirrored)
			m := newMirror(t, ofUpstream, mirrored, absent)
			m.ofUpstream(ofUpstream, absent)
			f := m.fetcher(from, options)
			run(t, f)
			if options.All {
				m.wantStored(mirrored)
			} else {
				read(t, f, m.item(mirrored), mirrored.files[mirrored.names[0]])
			}
			read(t, f, m.item(ofUpstream), ofUpstream.files[ofUpstream.names[0]])
			until(t, "it is stored", func() bool { return m.item(ofUpstream).HasStored(0) })
			if _, _, err := f.OpenFile(t.Context(), m.item(absent), 0, 0, -1, nil); !errors.Is(err, storage.ErrNotStored) {
				t.Errorf("%v", err)
			}
			until(t, "nothing is in download", func() bool { return f.Status().InFlight == 0 })
			want := []string{mirrored.names[0], absent.names[0], ofUpstream.names[0]} // sorted
			if got := slices.Sorted(slices.Values(from.asked())); !slices.Equal(got, want) {
				t.Errorf("requests %q, want %q", got, want)
			}
			if got := m.stored(mirrored); got != options.All {
				t.Errorf("the mirrored item is stored: %v", got)
			}
			if f.queue.IsWaiting(absent.hash(), time.Now()) {
				t.Error("a nar that is absent is to be fetched again")
			}
			if status := f.Status(); options.All && status.Missing > 0 || status.Paused {
				t.Errorf("%+v", status)
			}
			m.wantConsistent()
		})
	}
}

// ofUpstream records that items came from an upstream.
func (m *mirror) ofUpstream(items ...*made) {
	m.t.Helper()
	err := m.index.Update(m.t.Context(), func(tx *index.Tx) error {
		origin, err := tx.Origin("https://upstream.example")
		for _, item := range items {
			err = errors.Join(err, tx.SetOrigin(item.hash(), origin, time.Time{}))
		}
		return err
	})
	if err != nil {
		m.t.Fatal(err)
	}
}
