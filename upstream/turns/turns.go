// Package turns has a queue in which clients take turns.
package turns

import (
	"net/netip"
	"slices"
	"sort"
)

// Place is the place of an item in a [Queue].
type Place struct {
	// Client is the network of the client that waits for the item. Those without a network are
	// one.
	Client netip.Prefix
	// Number orders the items of a client: lower ones are first.
	Number uint64
}

// Queue is a queue of items of clients, which take turns: one with many items delays the few of
// another by one each. The zero value is empty.
type Queue[T interface{ Place() Place }] struct {
	lines map[netip.Prefix]*line[T]
	turns []*line[T] // all of them; the first is next
	count int
}

// line is the items of one client, in order, at least one.
type line[T any] struct {
	client netip.Prefix
	items  []T
}

// Len returns how many items are queued.
func (q *Queue[T]) Len() int { return q.count }

// Push queues items. Those of one client with the same number stay in the order of the calls.
func (q *Queue[T]) Push(items ...T) {
	for _, item := range items {
		place := item.Place()
		l := q.lines[place.Client]
		if l == nil {
			if q.lines == nil {
				q.lines = make(map[netip.Prefix]*line[T])
			}
			l = &line[T]{client: place.Client}
			q.lines[place.Client] = l
			q.turns = append(q.turns, l)
		}
		at := len(l.items)
		if at > 0 && l.items[at-1].Place().Number > place.Number {
			at = sort.Search(at, func(i int) bool { return l.items[i].Place().Number > place.Number })
		}
		l.items = slices.Insert(l.items, at, item)
		q.count++
	}
}

// Pop removes and returns the next item. It returns false if there is none.
func (q *Queue[T]) Pop() (item T, ok bool) {
	if q.count == 0 {
		return item, false
	}
	l := q.turns[0]
	q.turns[0] = nil
	q.turns = q.turns[1:]
	item, l.items[0] = l.items[0], item
	if l.items = l.items[1:]; len(l.items) > 0 {
		q.turns = append(q.turns, l)
	} else {
		delete(q.lines, l.client)
	}
	q.count--
	return item, true
}

// Drop removes the items that meet a condition.
func (q *Queue[T]) Drop(condition func(T) bool) {
	q.turns = slices.DeleteFunc(q.turns, func(l *line[T]) bool {
		before := len(l.items)
		l.items = slices.DeleteFunc(l.items, condition)
		q.count -= before - len(l.items)
		if len(l.items) > 0 {
			return false
		}
		delete(q.lines, l.client)
		return true
	})
}
