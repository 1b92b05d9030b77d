package turns

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
)

// item is an item of a client, with its number.
type item struct {
	client byte
	number uint64
}

func (i item) Place() Place {
	if i.client == 0 {
		return Place{Number: i.number}
	}
	return Place{netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 0, 2, i.client}), 32), i.number}
}

func popAll(q *Queue[item]) (all []item) {
	for q.Len() > 0 {
		next, _ := q.Pop()
		all = append(all, next)
	}
	return all
}

// TestQueue: clients take turns, and get their own items in order.
func TestQueue(t *testing.T) {
	t.Parallel()
	var q Queue[item]
	q.Push(item{1, 1}, item{1, 2}, item{1, 5})
	q.Push(item{0, 7}, item{0, 8})
	if first, ok := q.Pop(); !ok || first != (item{1, 1}) {
		t.Errorf("%v, %v", first, ok)
	}
	q.Push(item{1, 3}, item{2, 0}, item{1, 1}) // one came too late, another is back
	q.Push()
	if got, want := popAll(&q), []item{{0, 7}, {1, 1}, {2, 0}, {0, 8}, {1, 2}, {1, 3}, {1, 5}}; !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	q.Push(item{1, 1}, item{2, 2}, item{2, 3}, item{0, 4}, item{1, 5})
	q.Drop(func(i item) bool { return i.client == 1 || i.number == 2 })
	if got, want := popAll(&q), []item{{2, 3}, {0, 4}}; !slices.Equal(got, want) {
		t.Errorf("%v are not dropped, want %v", got, want)
	}
	if next, ok := q.Pop(); ok || len(q.lines)+len(q.turns) > 0 {
		t.Errorf("%v in an empty queue with %d clients", next, len(q.lines))
	}
}

// TestQueueTurns: while clients wait, none gets two items more than another.
func TestQueueTurns(t *testing.T) {
	t.Parallel()
	random := rand.New(rand.NewPCG(1, 2))
	var q Queue[item]
	var number uint64
	for range 100 {
		for client := range byte(4) {
			for range random.IntN(50) {
				q.Push(item{client, number + uint64(random.IntN(100))})
				number++
			}
		}
		var got, waiting [4]int
		for client := range waiting {
			place := item{client: byte(client)}.Place()
			if l := q.lines[place.Client]; l != nil {
				waiting[client] = len(l.items)
			}
		}
		var last [4]uint64
		for range random.IntN(q.Len() + 1) {
			next, ok := q.Pop()
			if !ok || next.number < last[next.client] {
				t.Fatalf("%v after %d", next, last[next.client])
			}
			last[next.client] = next.number
			got[next.client]++
		}
		for one := range got {
			for other := range got {
				if got[one] < waiting[one] && got[other] > got[one]+1 {
					t.Fatalf("%v of %v came", got, waiting)
				}
			}
		}
	}
}
