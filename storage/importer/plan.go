package importer

import (
	"context"
	"errors"

	"nar-herder/narinfo"
)

// plan orders an import of items that must have all their references, in any order and in
// cycles. All narinfos are read before any nar is stored, so that items with references
// that are neither in the index nor in the import are refused at once. The others are
// imported in an order in which few wait for their references. A plan takes some 200 bytes
// for each item.
type plan struct {
	// coming counts the narinfo files of each item that are not prepared yet.
	coming map[narinfo.PathHash]int
	// held are items that wait for their references.
	held []importing
}

// planned is a narinfo file.
type planned struct {
	narinfoFile
	hash narinfo.PathHash
	// missing are the references that are not in the index.
	missing []narinfo.StorePath
	bad     bool // one of them is not coming either
}

// planImport reads the narinfos and returns the files to import. It reports the others.
// The error is about names that could not be read.
func (im *Importer) planImport(ctx context.Context, names []string, report func(Imported)) (*plan, []narinfoFile, error) {
	found := make(chan narinfoFile, batchItems)
	var walkErr error
	go func() {
		defer close(found)
		walkErr = walk(ctx, names, found)
	}()
	var files []*planned
	for file := range found {
		p := &planned{narinfoFile: file}
		files = append(files, p)
		n, err := readNarinfo(file)
		if err == nil {
			p.hash = n.StorePath.Hash
			p.missing, err = im.missingReferences(ctx, n)
		}
		if err != nil {
			p.hash = narinfo.PathHash{} // it is reported when it is prepared
		}
	}
	if err := ctx.Err(); err != nil {
		return nil, nil, err
	}
	of := make(map[narinfo.PathHash][]*planned, len(files))
	for _, p := range files {
		of[p.hash] = append(of[p.hash], p)
	}
	refuse(files, of)
	plan := &plan{coming: make(map[narinfo.PathHash]int, len(files))}
	var order []narinfoFile
	for _, p := range inOrder(files, of) {
		if !p.bad {
			plan.coming[p.hash]++
			order = append(order, p.narinfoFile)
			continue
		}
		var lacks errMissingReferences
		for _, path := range p.missing {
			if !anyGood(of[path.Hash]) {
				lacks = append(lacks, path)
			}
		}
		report(Imported{p.name, Result{Outcome: Failed, Err: lacks}})
	}
	return plan, order, walkErr
}

// missingReferences returns the references of a narinfo to other items that have none.
func (im *Importer) missingReferences(ctx context.Context, n *narinfo.Narinfo) ([]narinfo.StorePath, error) {
	missing, err := im.index.MissingReferences(ctx, n)
	others := missing[:0]
	for _, path := range missing {
		if path != n.StorePath {
			others = append(others, path)
		}
	}
	return others, err
}

func anyGood(files []*planned) bool {
	for _, p := range files {
		if !p.bad {
			return true
		}
	}
	return false
}

// refuse marks files as bad that refer to items which are not coming, and files that refer
// to these.
func refuse(files []*planned, of map[narinfo.PathHash][]*planned) {
	dependents := make(map[narinfo.PathHash][]*planned)
	var bad []*planned
	for _, p := range files {
		for _, path := range p.missing {
			dependents[path.Hash] = append(dependents[path.Hash], p)
			if len(of[path.Hash]) == 0 && !p.bad {
				p.bad = true
				bad = append(bad, p)
			}
		}
	}
	for len(bad) > 0 {
		p := bad[len(bad)-1]
		bad = bad[:len(bad)-1]
		if anyGood(of[p.hash]) {
			continue
		}
		for _, d := range dependents[p.hash] {
			if !d.bad {
				d.bad = true
				bad = append(bad, d)
			}
		}
	}
}

// inOrder returns the files, each after those that it refers to, except in cycles.
func inOrder(files []*planned, of map[narinfo.PathHash][]*planned) []*planned {
	type visit struct {
		p    *planned
		next int // of p.missing
	}
	order := make([]*planned, 0, len(files))
	visited := make(map[*planned]bool, len(files))
	var stack []visit
	push := func(p *planned) {
		if !visited[p] {
			visited[p] = true
			stack = append(stack, visit{p: p})
		}
	}
	for _, p := range files {
		push(p)
		for len(stack) > 0 {
			top := &stack[len(stack)-1]
			if top.next == len(top.p.missing) {
				order = append(order, top.p)
				stack = stack[:len(stack)-1]
				continue
			}
			path := top.p.missing[top.next]
			top.next++
			for _, other := range of[path.Hash] {
				push(other)
			}
		}
	}
	return order
}

// ready accepts prepared items, and returns those that can be committed together now or
// have failed. It holds the others until their references come.
func (p *plan) ready(ctx context.Context, im *Importer, arrived []importing) (ready []importing) {
	for _, i := range arrived {
		if i.prepared.Addition != nil {
			p.coming[i.prepared.Narinfo.StorePath.Hash]--
		}
	}
	waiting := append(p.held, arrived...)
	p.held = nil
	missing := make([][]narinfo.StorePath, len(waiting))
	going := make(map[narinfo.PathHash]int)
	for n, i := range waiting {
		if i.prepared.result.Err != nil {
			continue
		}
		var err error
		if missing[n], err = im.missingReferences(ctx, i.prepared.Narinfo); err != nil {
			i.prepared.fail(err)
			continue
		}
		going[i.prepared.Narinfo.StorePath.Hash]++
	}
	stays := make([]bool, len(waiting))
	held := make(map[narinfo.PathHash]int)
	for again := true; again; {
		again = false
		for n, i := range waiting {
			if i.prepared.result.Err != nil || stays[n] {
				continue
			}
			hash := i.prepared.Narinfo.StorePath.Hash
			var lacks errMissingReferences
			waits := false
			for _, path := range missing[n] {
				switch {
				case going[path.Hash] > 0:
				case p.coming[path.Hash] > 0 || held[path.Hash] > 0:
					waits = true
				default:
					lacks = append(lacks, path)
				}
			}
			switch {
			case len(lacks) > 0:
				i.prepared.fail(lacks)
			case waits:
				stays[n] = true
				held[hash]++
			default:
				continue
			}
			going[hash]--
			again = true
		}
		// Held items may wait for items that have failed since.
		for n, i := range waiting {
			if !stays[n] || i.prepared.result.Err != nil {
				continue
			}
			var lacks errMissingReferences
			for _, path := range missing[n] {
				if going[path.Hash]+p.coming[path.Hash]+held[path.Hash] <= 0 {
					lacks = append(lacks, path)
				}
			}
			if len(lacks) > 0 {
				i.prepared.fail(lacks)
				stays[n] = false
				held[i.prepared.Narinfo.StorePath.Hash]--
				again = true
			}
		}
	}
	for n, i := range waiting {
		if stays[n] {
			p.held = append(p.held, i)
		} else {
			ready = append(ready, i)
		}
	}
	return ready
}

// errAgain aborts a transaction, before any bytes are visible, to repeat it without the items
// that have failed in it.
var errAgain = errors.New("without the items that have failed")
