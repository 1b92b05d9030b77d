package queue

import (
	"fmt"
	"testing"
	"time"

	"nar-herder/narinfo"
)

// TestBounded: more items are added and fail than are remembered.
func TestBounded(t *testing.T) {
	t.Parallel()
	q := New()
	hash := func(n int) narinfo.PathHash {
		hash, err := narinfo.ParsePathHash(fmt.Sprintf("%032d", n))
		if err != nil {
			t.Fatal(err)
		}
		return hash
	}
	now := time.Unix(0, 0)
	for n := range 3 * maxWanted {
		q.Add(hash(n))
		q.Add(hash(n))
		q.Retry(hash(n), now, func(int) time.Duration { return time.Minute })
	}
	last := hash(3*maxWanted - 1)
	if len(q.wanted) > maxWanted || len(q.wanted) != len(q.isWanted) || q.wanted[len(q.wanted)-1] != last {
		t.Errorf("%d wanted", len(q.wanted))
	}
	if wanted, retries := q.Forgotten(); q.retries.Len() > maxRetries || !wanted || !retries {
		t.Errorf("%d retries, forgotten: %v, %v", q.retries.Len(), wanted, retries)
	}
}

// TestOrder: announced items come first, the latest first, and failed ones when they are
// due.
func TestOrder(t *testing.T) {
	t.Parallel()
	q := New()
	a, b := narinfo.PathHash{1}, narinfo.PathHash{2}
	now := time.Unix(0, 0)
	pause := func(failures int) time.Duration { return time.Duration(failures+1) * time.Minute }
	want := func(hash narinfo.PathHash, wait time.Duration) {
		t.Helper()
		if gotHash, gotWait := q.Next(now); gotHash != hash || gotWait != wait {
			t.Errorf("it is %v in %s, want %v in %s", gotHash, gotWait, hash, wait)
		}
	}
	want(narinfo.PathHash{}, Longest)
	q.Retry(a, now, pause)
	q.Add(a)
	q.Add(b)
	want(b, 0)
	want(a, 0)
	want(narinfo.PathHash{}, time.Minute)
	now = now.Add(time.Minute)
	want(a, 0)
	if !q.IsWaiting(a, now) || q.IsWaiting(b, now) {
		t.Error("a is waiting for its outcome, and b is not")
	}
	q.Retry(a, now, pause)
	want(narinfo.PathHash{}, 2*time.Minute)
	q.Done(a)
	now = now.Add(time.Hour)
	want(narinfo.PathHash{}, Longest)
}
