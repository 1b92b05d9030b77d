package importer

import (
	"context"
	"errors"

	"nar-herder/narinfo"
	"nar-herder/storage/importer/narinfofiles"
	"nar-herder/storage/importer/references"
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

// planImport reads the narinfos and returns the files to import. It reports the others.
// The error is about names that could not be read.
func (im *Importer) planImport(ctx context.Context, names []string, report func(Imported)) (*plan, []narinfofiles.File, error) {
	var files []narinfofiles.File
	var items []references.Item
	walkErr := narinfofiles.FindItems(ctx, names, func(file narinfofiles.File) {
		var item references.Item // if unreadable, it is reported when it is prepared
		if n, err := file.Read(); err == nil {
			if missing, err := im.missingReferences(ctx, n); err == nil {
				item = references.Item{Hash: n.StorePath.Hash, Missing: missing}
			}
		}
		files = append(files, file)
		items = append(items, item)
	})
	if err := ctx.Err(); err != nil {
		return nil, nil, err
	}
	plan := &plan{coming: make(map[narinfo.PathHash]int, len(files))}
	var order []narinfofiles.File
	references.Order(items, func(n int, lacks []narinfo.StorePath) {
		if lacks != nil {
			report(Imported{files[n].Name, Result{Outcome: Failed, Err: errMissingReferences(lacks)}})
			return
		}
		plan.coming[items[n].Hash]++
		order = append(order, files[n])
	})
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
	var items []references.Item
	var at []int // of the items in waiting
	for n, i := range waiting {
		if i.prepared.result.Err != nil {
			continue
		}
		missing, err := im.missingReferences(ctx, i.prepared.Narinfo)
		if err != nil {
			i.prepared.fail(err)
			continue
		}
		items = append(items, references.Item{Hash: i.prepared.Narinfo.StorePath.Hash, Missing: missing})
		at = append(at, n)
	}
	waits, lacks := references.Together(items, p.coming)
	stays := make([]bool, len(waiting))
	for n, i := range at {
		stays[i] = waits[n]
		if lacks[n] != nil {
			waiting[i].prepared.fail(errMissingReferences(lacks[n]))
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
