package resign

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"iter"
	"runtime"
	"sync"
	"time"

	"nar-herder/narinfo"
	"nar-herder/storage"
	"nar-herder/storage/index"
)

const (
	// stepItems are signed at a time by one goroutine.
	stepItems = 128
	// batchItems bounds a transaction, in which others wait, and batchTime how long its
	// first items wait for more.
	batchItems = 1_000
	batchTime  = 250 * time.Millisecond
	// tries is how often an item is signed that changes meanwhile.
	tries = 5
)

// Result is the outcome for one item.
type Result struct {
	Hash    narinfo.PathHash
	Outcome Outcome
	// Narinfo is the narinfo before; nil if it could not be read.
	Narinfo *narinfo.Narinfo
	Err     error // when the outcome is Failed
}

// Items signs items of an index and replaces their narinfos there. The nars stay stored. Clients
// and mirrors see new narinfos. It calls report for each item when its row is
// durable, from one goroutine. A run that was interrupted can be repeated: items that have a
// signature by the key stay as they are.
//
// An error of the sequence that is an [index.Damage] is reported as the result of one item.
// Any other ends Items, which returns it.
//
// With dryRun, nothing changes, and report gets the results as they would be.
func (s *Signer) Items(ctx context.Context, store *storage.Storage, items iter.Seq2[*index.Item, error], dryRun bool, report func(Result)) error {
	p := &pass{Signer: s, store: store, index: store.Index(), dryRun: dryRun, report: report}
	for range tries {
		p.again = nil
		if err := p.run(ctx, items); err != nil || len(p.again) == 0 {
			return err
		}
		items = ItemsAt(ctx, p.index, p.again)
	}
	for _, hash := range p.again {
		report(Result{Hash: hash, Err: storage.ErrChanged})
	}
	return nil
}

// ItemsAt returns those of the items that the index still has.
func ItemsAt(ctx context.Context, x *index.Index, hashes []narinfo.PathHash) iter.Seq2[*index.Item, error] {
	return func(yield func(*index.Item, error) bool) {
		errStop := errors.New("stop")
		err := x.EachAt(ctx, hashes, func(_ int, item *index.Item, err error) error {
			if item == nil && err == nil || yield(item, err) {
				return nil
			}
			return errStop
		})
		if err != nil && !errors.Is(err, errStop) {
			yield(nil, err)
		}
	}
}

// pass signs all items of a sequence once: one goroutine reads them, as many as processors
// sign them, and one writes them.
type pass struct {
	*Signer
	store  *storage.Storage
	index  *index.Index
	dryRun bool
	report func(Result)
	// again are items that have changed between reading and writing.
	again []narinfo.PathHash
}

// row is an item as it was read, or the error in its place.
type row struct {
	item *index.Item
	err  error
}

// prepared is an item with its new narinfo, if that is to be written.
type prepared struct {
	row
	result Result
	entry  *index.Entry
}

func (p *pass) run(parent context.Context, items iter.Seq2[*index.Item, error]) error {
	ctx, cancel := context.WithCancel(parent)
	work := make(chan []row, runtime.GOMAXPROCS(0))
	ready := make(chan []*prepared, runtime.GOMAXPROCS(0))
	var readErr error
	var reader, signers sync.WaitGroup
	reader.Go(func() {
		defer close(work)
		readErr = read(ctx, items, work)
	})
	for range runtime.GOMAXPROCS(0) {
		signers.Go(func() {
			for step := range work {
				done := make([]*prepared, 0, len(step))
				for _, r := range step {
					done = append(done, p.prepare(r))
				}
				select {
				case ready <- done:
				case <-ctx.Done():
					return
				}
			}
		})
	}
	go func() {
		signers.Wait()
		close(ready)
	}()
	err := p.writeAll(ctx, ready)
	cancel()
	signers.Wait()
	reader.Wait()
	if err == nil {
		err = readErr
	}
	if err == nil {
		err = parent.Err() // the last items may be missing
	}
	return err
}

// read sends the items in steps.
func read(ctx context.Context, items iter.Seq2[*index.Item, error], work chan<- []row) error {
	var step []row
	send := func() error {
		select {
		case work <- step:
			step = nil
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	for item, err := range items {
		if err != nil && !errors.Is(err, index.ErrDamaged) {
			return err
		}
		if step = append(step, row{item, err}); len(step) == stepItems {
			if err := send(); err != nil {
				return err
			}
		}
	}
	return send()
}

// prepare does the part of signing an item that needs no transaction.
func (p *pass) prepare(r row) *prepared {
	done := &prepared{row: r}
	if r.err != nil {
		done.result.Err = r.err
		var damage *index.Damage
		if errors.As(r.err, &damage) {
			done.result.Hash = damage.Hash
		}
		return done
	}
	done.result.Hash = r.item.Hash
	old, err := storage.NewItem(r.item)
	if err != nil {
		done.result.Err = err
		return done
	}
	done.result.Narinfo = old.Narinfo
	if done.result.Outcome = p.ineligible(r.item); done.result.Outcome != Failed {
		return done
	}
	var signed *narinfo.Narinfo
	signed, done.result.Outcome, done.result.Err = p.Sign(old.Narinfo)
	if signed != nil && !p.dryRun {
		done.entry = p.index.Prepare(signed)
	}
	return done
}

// ineligible returns why an item is not signed; Failed for no reason.
func (s *Signer) ineligible(item *index.Item) Outcome {
	switch {
	case !item.WithdrawnAt.IsZero():
		return Withdrawn
	case item.Mirrored && !s.Mirrored:
		return OfSource
	}
	return Failed
}

// writeAll writes the items in batches of as many as are ready.
func (p *pass) writeAll(ctx context.Context, ready <-chan []*prepared) error {
	for batch := range ready {
		full := time.After(batchTime)
	gather:
		for len(batch) < batchItems {
			select {
			case more, ok := <-ready:
				if !ok {
					break gather
				}
				batch = append(batch, more...)
			case <-full:
				break gather
			}
		}
		if err := p.write(ctx, batch); err != nil {
			return err
		}
	}
	return nil
}

// write writes the items in one transaction, and reports them. The others are reported at the
// same time.
func (p *pass) write(ctx context.Context, batch []*prepared) error {
	writes := false
	for _, done := range batch {
		writes = writes || done.entry != nil
	}
	if writes {
		err := p.index.Update(ctx, func(tx *index.Tx) error {
			now := p.store.Now()
			for _, done := range batch {
				if done.entry == nil {
					continue
				}
				done.entry.AddedAt = now
				if err := p.put(tx, done); err != nil {
					return fmt.Errorf("%s: %w", done.result.Narinfo.StorePath.BaseName(), err)
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	for _, done := range batch {
		if errors.Is(done.result.Err, storage.ErrChanged) {
			p.again = append(p.again, done.result.Hash)
			continue
		}
		p.report(done.result)
	}
	return nil
}

// put replaces the row of an item, unless it has changed.
func (p *pass) put(tx *index.Tx, done *prepared) error {
	now, err := tx.Item(done.result.Hash)
	switch {
	case errors.Is(err, storage.ErrNotFound):
		done.result.Outcome = Removed
		return nil
	case errors.Is(err, index.ErrDamaged):
		done.result.Outcome, done.result.Err = Failed, err
		return nil
	case err != nil:
		return err
	}
	if reason := p.ineligible(now); reason != Failed {
		done.result.Outcome = reason
		return nil
	}
	if !bytes.Equal(now.Text, done.item.Text) {
		done.result.Outcome, done.result.Err = Failed, storage.ErrChanged
		return nil
	}
	// The new narinfo names the same files in the same order.
	done.entry.Stored, done.entry.Sizes, done.entry.VerifiedAt, done.entry.Dropped = now.Stored, now.Sizes, now.VerifiedAt, now.Dropped
	if err := tx.Put(done.entry, now); err != nil || !now.Mirrored {
		return err
	}
	return tx.SetMirrored(now.Hash, false)
}
