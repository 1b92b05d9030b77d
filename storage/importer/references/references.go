// Package references decides in which order items can be added that must have all their
// references, in any order and in cycles, and which of them can't be added.
package references

import "nar-herder/narinfo"

// Item is an item to be added.
type Item struct {
	Hash narinfo.PathHash
	// Missing are the items that it refers to and that were not added yet.
	Missing []narinfo.StorePath
}

// ordering is the state of [Order].
type ordering struct {
	items []Item
	of    map[narinfo.PathHash][]int // items may be duplicated
	bad   []bool
}

// Order calls next for each item, in an order in which each follows those that it refers to,
// except in cycles. lacks are the references that make it impossible to add the item: these
// are not among the items, or can't be added themselves. It is nil for the others.
func Order(items []Item, next func(n int, lacks []narinfo.StorePath)) {
	o := &ordering{items: items, of: make(map[narinfo.PathHash][]int, len(items)), bad: make([]bool, len(items))}
	for n, item := range items {
		o.of[item.Hash] = append(o.of[item.Hash], n)
	}
	o.refuse()
	o.each(func(n int) {
		var lacks []narinfo.StorePath
		if o.bad[n] {
			for _, path := range items[n].Missing {
				if !o.anyGood(path.Hash) {
					lacks = append(lacks, path)
				}
			}
		}
		next(n, lacks)
	})
}

func (o *ordering) anyGood(hash narinfo.PathHash) bool {
	for _, n := range o.of[hash] {
		if !o.bad[n] {
			return true
		}
	}
	return false
}

// refuse marks items as bad that refer to others which are not coming, and items that refer
// to these.
func (o *ordering) refuse() {
	dependents := make(map[narinfo.PathHash][]int)
	var bad []int
	for n, item := range o.items {
		for _, path := range item.Missing {
			dependents[path.Hash] = append(dependents[path.Hash], n)
			if len(o.of[path.Hash]) == 0 && !o.bad[n] {
				o.bad[n] = true
				bad = append(bad, n)
			}
		}
	}
	for len(bad) > 0 {
		hash := o.items[bad[len(bad)-1]].Hash
		bad = bad[:len(bad)-1]
		if o.anyGood(hash) {
			continue
		}
		for _, n := range dependents[hash] {
			if !o.bad[n] {
				o.bad[n] = true
				bad = append(bad, n)
			}
		}
	}
}

// each visits the items, each after those that it refers to, except in cycles.
func (o *ordering) each(visit func(n int)) {
	type visiting struct {
		n    int
		next int // of its references
	}
	visited := make([]bool, len(o.items))
	var stack []visiting
	push := func(n int) {
		if !visited[n] {
			visited[n] = true
			stack = append(stack, visiting{n: n})
		}
	}
	for n := range o.items {
		push(n)
		for len(stack) > 0 {
			top := &stack[len(stack)-1]
			missing := o.items[top.n].Missing
			if top.next == len(missing) {
				visit(top.n)
				stack = stack[:len(stack)-1]
				continue
			}
			path := missing[top.next]
			top.next++
			for _, other := range o.of[path.Hash] {
				push(other)
			}
		}
	}
}

// Together decides which items can be added together now. An item waits if a reference is
// still coming: coming counts the items of each hash that are neither among these nor added.
// It fails if it lacks references that are neither coming nor among the items, or that fail.
func Together(items []Item, coming map[narinfo.PathHash]int) (waits []bool, lacks [][]narinfo.StorePath) {
	waits = make([]bool, len(items))
	lacks = make([][]narinfo.StorePath, len(items))
	going := make(map[narinfo.PathHash]int)
	for _, item := range items {
		going[item.Hash]++
	}
	held := make(map[narinfo.PathHash]int)
	for again := true; again; {
		again = false
		for n, item := range items {
			if lacks[n] != nil || waits[n] {
				continue
			}
			for _, path := range item.Missing {
				switch {
				case going[path.Hash] > 0:
				case coming[path.Hash] > 0 || held[path.Hash] > 0:
					waits[n] = true
				default:
					lacks[n] = append(lacks[n], path)
				}
			}
			switch {
			case lacks[n] != nil:
				waits[n] = false
			case waits[n]:
				held[item.Hash]++
			default:
				continue
			}
			going[item.Hash]--
			again = true
		}
		// Items that wait may wait for items that have failed since.
		for n, item := range items {
			if !waits[n] {
				continue
			}
			for _, path := range item.Missing {
				if going[path.Hash]+coming[path.Hash]+held[path.Hash] <= 0 {
					lacks[n] = append(lacks[n], path)
				}
			}
			if lacks[n] != nil {
				waits[n] = false
				held[item.Hash]--
				again = true
			}
		}
	}
	return waits, lacks
}
