package check

import (
	"context"
	"errors"
	"iter"
	"runtime"
	"sync"

	"nar-herder/narinfo"
	"nar-herder/storage"
	"nar-herder/storage/index"
)

// signedLot is the number of items that are verified together, on one core.
const signedLot = 64

// lot is some items in the order of the index, with the results of verifying them.
type lot struct {
	rows    []*index.Item
	refused []error // one for each row
	err     error   // of reading the next item
	done    chan struct{}
}

// kindOf returns the finding for a refused narinfo.
func kindOf(err error) FindingKind {
	switch storage.Reason(err) {
	case storage.Unsigned:
		return Unsigned
	case storage.BadSignature:
		return BadSignature
	}
	return Unauthorized
}

// CheckSignatures finds items that none of the storage's keys has signed. Without keys, it
// finds items with a signature that doesn't match the text. It skips withdrawn items. Errors
// are as in [Checker.Compare]; looked is called after each item, and may be nil.
func (c *Checker) CheckSignatures(ctx context.Context, looked func()) iter.Seq2[Finding, error] {
	if looked == nil {
		looked = func() {}
	}
	return func(yield func(Finding, error) bool) {
		inner, stop := context.WithCancel(ctx)
		cores := runtime.GOMAXPROCS(0)
		ordered, work := make(chan *lot, 2*cores), make(chan *lot)
		var running sync.WaitGroup
		defer running.Wait()
		defer stop()
		running.Go(func() {
			defer close(ordered)
			defer close(work)
			c.readLots(inner, ordered, work)
		})
		for range cores {
			running.Go(func() {
				for l := range work {
					l.refused = make([]error, len(l.rows))
					for i, row := range l.rows {
						l.refused[i] = c.authorize(row)
					}
					close(l.done)
				}
			})
		}
		for l := range ordered {
			select {
			case <-l.done:
			case <-ctx.Done():
			}
			if ctx.Err() != nil {
				break
			}
			for i, row := range l.rows {
				if l.refused[i] != nil {
					if finding, err := c.refused(ctx, row.Hash); (err != nil || finding.Kind != Unknown) && !yield(finding, err) {
						return
					}
				}
				looked()
			}
			if l.err != nil && !yield(Finding{}, l.err) {
				return
			}
		}
		if ctx.Err() != nil {
			yield(Finding{}, ctx.Err())
		}
	}
}

// readLots sends all items in lots, each to both channels.
func (c *Checker) readLots(ctx context.Context, ordered, work chan<- *lot) {
	l := new(lot)
	send := func() bool {
		l.done = make(chan struct{})
		for _, to := range []chan<- *lot{ordered, work} {
			select {
			case to <- l:
			case <-ctx.Done():
				return false
			}
		}
		l = new(lot)
		return true
	}
	for row, err := range c.index.Items(ctx) {
		switch {
		case errors.Is(err, index.ErrDamaged):
			continue // CheckIndex reports it
		case err != nil:
			l.err = err
		case row.WithdrawnAt.IsZero():
			l.rows = append(l.rows, row)
		}
		if (len(l.rows) == signedLot || l.err != nil) && !send() {
			return
		}
	}
	send()
}

// authorize returns why clients would refuse an item, or nil.
func (c *Checker) authorize(row *index.Item) error {
	n, err := narinfo.Parse(row.Text)
	if err != nil {
		return err
	}
	return c.authorized(n)
}

// authorized returns why clients would refuse a narinfo, or nil. Without keys, it accepts one
// without a signature.
func (c *Checker) authorized(n *narinfo.Narinfo) error {
	err := storage.Authorize(n, c.Keys())
	if c.Keys() == nil && storage.Reason(err) == storage.Unsigned {
		return nil
	}
	return err
}

// refused looks at an item again that clients would refuse, as another process may have
// replaced it. The kind of the finding is Unknown when nothing is to be reported.
func (c *Checker) refused(ctx context.Context, hash narinfo.PathHash) (Finding, error) {
	item, err := c.Item(ctx, hash)
	if errors.Is(err, storage.ErrNotFound) {
		return Finding{}, nil
	} else if err != nil {
		return Finding{}, err
	}
	if !item.WithdrawnAt.IsZero() {
		return Finding{}, nil
	}
	if err := c.authorize(item.Item); err != nil {
		return Finding{Kind: kindOf(err), Item: item, Note: err.Error()}, nil
	}
	return Finding{}, nil
}
