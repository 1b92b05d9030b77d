package nars

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"nar-herder/mirror/nars/spool"
)

// onMessage is a log handler that calls a function before each message.
type onMessage struct {
	slog.Handler
	before func(message string)
}

func (h onMessage) Handle(ctx context.Context, r slog.Record) error {
	h.before(r.Message)
	return h.Handler.Handle(ctx, r)
}

// TestStoredMeanwhile: a nar that is stored between a caller's look at the row and its
// download is not fetched again.
func TestStoredMeanwhile(t *testing.T) {
	t.Parallel()
	item := spec{n: 1, size: 500_000, kinds: []string{"none"}}.make(t)
	name, content := item.names[0], item.files[item.names[0]]

	// between makes a fetcher that calls the function once, after the caller has read
	// the row.
	between := func(m *mirror, from *source, do func(*Fetcher)) (f *Fetcher) {
		called := false
		f = m.fetcher(from, Options{Limit: 1 << 40, Usage: func(context.Context) (int64, error) {
			if !called {
				called = true
				do(f)
			}
			return 0, nil
		}})
		return f
	}
	store := func(f *Fetcher) { f.fetchItem(t.Context(), item.hash()) }
	for what, test := range map[string]struct {
		do   func(t *testing.T, m *mirror, from *source) *Fetcher
		want []string // requests
	}{
		"item": {func(t *testing.T, m *mirror, from *source) *Fetcher {
			f := between(m, from, store)
			f.fetchItem(t.Context(), item.hash())
			return f
		}, []string{name}},
		"client": {func(t *testing.T, m *mirror, from *source) *Fetcher {
			f := between(m, from, store)
			body, size, err := f.OpenFile(t.Context(), m.item(item), 0, 0, -1, nil)
			if err != nil {
				t.Fatal(err)
			}
			defer body.Close()
			if got, err := io.ReadAll(body); err != nil || size != int64(len(content)) || !bytes.Equal(got, content) {
				t.Errorf("%d of %d bytes, %v", len(got), size, err)
			}
			return f
		}, []string{name}},
		"file found": {func(t *testing.T, m *mirror, from *source) *Fetcher {
			f := m.fetcher(from, Options{})
			old := m.item(item)
			store(f)
			if err := f.fetchFile(t.Context(), old, 0); err != nil {
				t.Error(err)
			}
			if strings.Contains(m.log.String(), "recorded a nar") {
				t.Error("a file that is stored was compared once more")
			}
			return f
		}, []string{name}},
		"fetched anew": {func(t *testing.T, m *mirror, from *source) *Fetcher {
			wrong := bytes.Clone(content[:len(content)/2])
			wrong[1000] ^= 1
			key := spool.Key(m.item(item), 0)
			write(t, filepath.Join(m.dir, ".nar-herder-spool", key), wrong)
			f := m.fetcher(from, Options{})
			f.log = slog.New(onMessage{f.log.Handler(), func(message string) {
				if strings.Contains(message, "is fetched anew") {
					// The second download ends before the first.
					if second := f.join(key); second != nil {
						second.leave()
						<-second.done
					}
				}
			}})
			f.fetchItem(t.Context(), item.hash())
			return f
		}, []string{name + " bytes=" + strconv.Itoa(250_000-overlap) + "-", name}},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			from := newSource(t, item)
			m := newMirror(t, item)
			f := test.do(t, m, from)
			m.wantStored(item)
			if got := from.asked(); !slices.Equal(got, test.want) {
				t.Errorf("requests %q, want %q", got, test.want)
			}
			if got := counted(t, f, "narherder_mirror_nars_fetched_total", ""); got != 1 {
				t.Errorf("%v nars counted", got)
			}
			for _, reason := range reasons {
				if got := failures(t, f, reason); got != 0 {
					t.Errorf("%d failures for the reason %s", got, reason)
				}
			}
			if status := f.Status(); status.InFlight != 0 || f.room.Coming() != 0 {
				t.Errorf("%+v, %d bytes are coming", status, f.room.Coming())
			}
			m.wantConsistent()
		})
	}
}
