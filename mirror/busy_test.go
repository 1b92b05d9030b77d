package mirror

import (
	"net/http"
	"sync/atomic"
	"testing"

	"nar-herder/peer"
)

// TestBusyStream: pages are requested from a source that allows no more streams.
func TestBusyStream(t *testing.T) {
	t.Parallel()
	source := newInstance(t)
	source.add(at(1), testInfo(1, 1, 1))
	source.dump(true)
	var refused atomic.Int64
	source.through(func(w http.ResponseWriter, r *http.Request) bool {
		if r.URL.Path != peer.StreamPath {
			return false
		}
		refused.Add(1)
		http.Error(w, "too many", http.StatusServiceUnavailable)
		return true
	})
	f := follow(t, newInstance(t), source, nil)
	f.same(source)
	until(t, "the stream to be tried", func() bool { return refused.Load() > 0 })
	source.add(at(2), testInfo(2, 1, 2))
	f.same(source)
}
