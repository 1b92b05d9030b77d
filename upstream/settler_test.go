package upstream

import (
	"slices"
	"sync"
	"testing"
	"testing/synctest"

	"nar-herder/narinfo"
)

// TestSettlerOrder: replies that wait are settled in the order of their questions, and adding one
// waits while they are too large.
func TestSettlerOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSettler()
		var mu sync.Mutex
		var order []byte
		hashes := make([]narinfo.PathHash, 8)
		for i := range hashes {
			hashes[i][0] = byte(i)
		}
		q := &question{
			set: &Set{}, hashes: hashes, items: make([]item, len(hashes)), done: make(chan struct{}),
			deliver: func(hash narinfo.PathHash, _ Answer) {
				mu.Lock()
				defer mu.Unlock()
				order = append(order, hash[0])
			},
		}
		q.left.Store(int64(len(hashes)))
		s.running = 1 << 10 // none more is started
		go func() {
			for _, i := range []int{6, 1, 0, 7, 3, 2, 5} {
				s.add(turn{q, i, mostUnsettled / 6})
			}
			s.add(turn{q, 4, 1}) // waits: there is too much
		}()
		synctest.Wait()
		if s.queue.Len() != 7 {
			t.Errorf("%d replies wait, want 7", s.queue.Len())
		}
		s.running = 1
		go s.run()
		<-q.done
		synctest.Wait()
		at := slices.Index(order, 4)
		if at < 1 || !slices.IsSorted(slices.Delete(slices.Clone(order), at, at+1)) {
			t.Errorf("the order is %v", order)
		}
		if s.bytes != 0 || s.queue.Len() != 0 || s.running != 0 {
			t.Errorf("%d bytes and %d replies wait, %d run", s.bytes, s.queue.Len(), s.running)
		}
	})
}
