package tiered

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
)

// check is a question to the store behind, whether a copy is still right. All who
// want to know wait for the one.
type check struct {
	ctx  context.Context // ends when it has taken too long
	done chan struct{}
	// err is the answer: nil, errAnew, or that there is nothing of that name.
	err error
}

// validate makes sure that an entry, of which the caller is a user, is of the
// content that the name has. When the store behind can't be asked, it is taken to
// be: its bytes were right, and better than none.
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
		t.unanswered(fmt.Errorf("no answer within %v", t.checkTimeout))
		return nil
	}
}

// ask compares an entry with the store behind. It leaves the entry before it
// answers, so that a caller who then leaves is the last user of a dropped copy.
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

// unanswered notes that the store behind can't be asked.
func (t *Tiered) unanswered(err error) {
	t.mu.Lock()
	t.downUntil = t.now().Add(downFor)
	news := !t.down
	t.down = true
	t.mu.Unlock()
	if news {
		t.log.Warn("the storage can't be asked; what the cache has is served all the same, as it was", "storage", t.Store.String(), "error", err)
	}
}

// answered notes that it can.
func (t *Tiered) answered() {
	t.mu.Lock()
	news := t.down
	t.down = false
	t.mu.Unlock()
	if news {
		t.log.Info("the storage answers again", "storage", t.Store.String())
	}
}
