package removal

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"nar-herder/storage"
	"nar-herder/storage/directory"
)

// undeletable is a directory store that can't delete files, and finds that out only when it
// tries.
type undeletable struct {
	*directory.Directory
	isStuck atomic.Bool
}

func (d *undeletable) Remove(ctx context.Context, name string) error {
	if d.isStuck.Load() {
		return errors.New("it is stuck")
	}
	return d.Directory.Remove(ctx, name)
}

// TestUndeletable: a file that can't be deleted ends the pass, and prevents others while it
// exists. What was not freed does not count as freed.
func TestUndeletable(t *testing.T) {
	t.Parallel()
	c := newClock()
	a, b := newInstance(t, c), newInstance(t, c)
	a.imports(many(20, narBytes)...)
	b.imports(many(20, narBytes)...)
	store, err := directory.Open(a.directory)
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	stuck := &undeletable{Directory: store}
	stuck.isStuck.Store(true)
	a.Storage = storage.New(a.index, stuck, storage.Options{Now: c.now})
	// As after restarts.
	for pass := range 3 {
		r := a.remover(15*narBytes, b, "stored-on=B")
		for range 3 {
			round(t, r)
			c.advance(time.Hour)
		}
		if gone := strings.Count(a.state(20), "!"); gone > 6 {
			t.Errorf("after pass %d, %d items have lost their nars", pass, gone)
		}
		if warnings := strings.Join(r.Warnings(), "; "); !strings.Contains(warnings, "can't be deleted") {
			t.Errorf("warnings: %s", warnings)
		}
		if bytes, nars := counted(t, r, "narherder_removal_bytes_total"), counted(t, r, "narherder_removal_nars_total"); bytes != 0 || nars != 0 {
			t.Errorf("%v bytes of %v nars count as removed", bytes, nars)
		}
		if usage := counted(t, r, "narherder_storage_usage_bytes"); usage < 20*narBytes {
			t.Errorf("the reported usage is %v bytes", usage)
		}
		if failed := counted(t, r, "narherder_removal_failed_deletions_total"); failed == 0 {
			t.Error("no failure was counted")
		}
	}
	stuck.isStuck.Store(false)
	r := a.remover(15*narBytes, b, "stored-on=B")
	for range 3 {
		round(t, r)
		c.advance(time.Hour)
	}
	if state := a.state(20); gone(state) < 5 || gone(state) > 7 || r.Warnings() != nil {
		t.Errorf("%s, %v", state, r.Warnings())
	}
}

// oneStuck is a directory store that can't delete one file, and may report that beforehand.
type oneStuck struct {
	*directory.Directory
	name     string
	foresees bool
}

func (d *oneStuck) Remove(ctx context.Context, name string) error {
	if name == d.name {
		return errors.New("it is stuck")
	}
	return d.Directory.Remove(ctx, name)
}

func (d *oneStuck) MayRemove(name string) error {
	if name == d.name && d.foresees {
		return errors.New("it is stuck")
	}
	return nil
}

// TestUndeletableOne: other nars are removed around a file that can't be deleted.
func TestUndeletableOne(t *testing.T) {
	t.Parallel()
	for _, foresees := range []bool{true, false} {
		c := newClock()
		a, b := newInstance(t, c), newInstance(t, c)
		a.imports(many(20, narBytes)...)
		b.imports(many(20, narBytes)...)
		store, err := directory.Open(a.directory)
		if err != nil {
			t.Fatal(err)
		}
		defer store.Close()
		first := many(20, narBytes)[0]
		stuck := &oneStuck{Directory: store, name: "nar/lzip/" + first.base(), foresees: foresees}
		a.Storage = storage.New(a.index, stuck, storage.Options{Now: c.now})
		r := a.remover(15*narBytes, b, "stored-on=B")
		for range 5 {
			round(t, r)
			c.advance(time.Hour)
		}
		if n := gone(a.state(20)); n < 5 || n > 8 {
			t.Errorf("foresees %v: %d items have lost their nars", foresees, n)
		}
		r.SetLimit(0)
		for range 3 {
			round(t, r)
			c.advance(time.Hour)
		}
		if n := gone(a.state(20)); n < 19 || foresees && n > 19 {
			t.Errorf("foresees %v: at last, %d items have lost their nars", foresees, n)
		}
		if warnings := strings.Join(r.Warnings(), "; "); !strings.Contains(warnings, "can't be deleted") {
			t.Errorf("foresees %v: warnings: %s", foresees, warnings)
		}
	}
}
