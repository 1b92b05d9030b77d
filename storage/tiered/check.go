package tiered

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
)

// check is a revalidation of a copy in progress. All readers of the copy share it.
type check struct {
	ctx  context.Context // with the timeout
	done chan struct{}
	// err is the result: nil, errAnew, or fs.ErrNotExist.
	err error
}

// validate returns an error if an entry no longer has the content of the name. The caller
// must be a user of the entry. If the store doesn't answer, the entry is considered valid:
// its bytes were correct, and an old nar is better than none.
func (t *Tiered) validate(ctx context.Context, e *entry, name string) error {
	t.mu.Lock()
	now := t.now()
	switch {
	case e.dropped:
		t.mu.Unlock()
		return errAnew
	case t.seconds(now)-e.checked < int32(fresh.Seconds()), now.Before(t.downUntil), !t.ready:
		t.mu.Unlock()
		return nil
	}
	c := e.check
	if c == nil {
		askCtx, cancel := context.WithTimeout(t.ctx, t.checkTimeout)
		c = &check{ctx: askCtx, done: make(chan struct{})}
		e.check = c
		t.use(e)
		t.running.Go(func() {
			defer cancel()
			t.ask(e, c, name)
		})
	}
	t.mu.Unlock()
	select {
	case <-c.done:
		return c.err
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-c.ctx.Done():
	}
	select {
	case <-c.done: // both at once
		return c.err
	default:
		t.unanswered(fmt.Errorf("no response within %v", t.checkTimeout))
		return nil
	}
}

// ask compares an entry with the store. It leaves the entry before it closes done, so that
// a waiting reader is the last user of a dropped copy.
func (t *Tiered) ask(e *entry, c *check, name string) {
	defer close(c.done)
	defer t.leave(e)
	t.mu.Lock()
	asked := t.seconds(t.now())
	t.mu.Unlock()
	info, err := t.Store.Stat(c.ctx, name)
	t.metrics.checks.Add(1)
	switch {
	case err == nil:
		t.answered()
		if !sameContent(info, e.content.info(name)) {
			t.drop(e)
			c.err = errAnew
		}
	case errors.Is(err, fs.ErrNotExist):
		t.answered()
		t.drop(e)
		c.err = err
	case t.ctx.Err() == nil:
		t.unanswered(err)
	}
	t.mu.Lock()
	e.check = nil
	if err == nil {
		e.checked = asked
	}
	t.mu.Unlock()
}

// unanswered records that the store doesn't answer.
func (t *Tiered) unanswered(err error) {
	t.mu.Lock()
	t.downUntil = t.now().Add(downFor)
	news := !t.down
	t.down = true
	t.mu.Unlock()
	if news {
		t.log.Warn("the storage doesn't answer: its cache serves nars without revalidation", "storage", t.Store.String(), "error", err)
	}
}

// answered records that the store answers.
func (t *Tiered) answered() {
	t.mu.Lock()
	news := t.down
	t.down = false
	t.mu.Unlock()
	if news {
		t.log.Info("the storage answers again", "storage", t.Store.String())
	}
}
