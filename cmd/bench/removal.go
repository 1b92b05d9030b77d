package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"nar-herder/narinfo"
	"nar-herder/storage/index"
)

// A tenth of all items is removed twice: once without load, and once under load.
const (
	removalShare = 10
	// removalNar is the size of a nar there, which takes a block on disk.
	removalNar = 100
	block      = 4096
	// removalWait bounds a removal.
	removalWait = 10 * time.Minute
)

// removal measures how fast nars are removed that another instance has, and the effect on
// narinfo requests.
func (b *bench) removal() error {
	work, err := os.MkdirTemp(b.work, "removal-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	here, there := filepath.Join(work, "here"), filepath.Join(work, "there")
	paths, err := b.twoStorages(here, there, b.index)
	if err != nil {
		return err
	}
	other, err := b.narHerder(filepath.Join(there, "nar_herder.db"), filepath.Join(there, "storage"))
	if err != nil {
		return err
	}
	defer other.stop()
	l, err := b.newLoad(paths, 1)
	if err != nil {
		return err
	}
	start := func(options ...string) (*server, error) {
		return b.narHerder(filepath.Join(here, "nar_herder.db"), filepath.Join(here, "storage"), options...)
	}
	limits := func(share int) []string {
		return []string{
			"--storage-check-interval=1s", "--storage-nar-removal-criteria=stored-on=http://" + other.address,
			fmt.Sprintf("--storage-limit=%dB", int64(b.index-share*b.index/removalShare)*block),
		}
	}

	// The rate without any removal.
	ours, err := start()
	if err != nil {
		return err
	}
	var idle []float64
	for range b.rounds + 1 {
		m, err := l.run(b, ours, b.duration)
		if err != nil {
			ours.stop()
			return err
		}
		idle = append(idle, m.rate)
	}
	idle = idle[1:] // the first one is a warm-up
	ours.stop()

	// Remove a tenth without load.
	if ours, err = start(limits(1)...); err != nil {
		return err
	}
	rate, err := b.decisions(ours, b.index/removalShare)
	if err != nil {
		ours.stop()
		return err
	}
	peak, err := ours.memory("VmHWM")
	ours.stop()
	if err != nil {
		return err
	}
	b.addFigure(fmt.Sprintf("removal: decisions of %d items, %d over the limit", b.index, b.index/removalShare), "items/s", rate, 5000, false)
	b.addFigure("removal: resident memory, at most", "MB", float64(peak)/1e6, 150, true)

	// Remove another tenth under load.
	if ours, err = start(limits(2)...); err != nil {
		return err
	}
	defer ours.stop()
	if err := b.removing(ours); err != nil {
		return err
	}
	var busy, decided []float64
	for range idle {
		before, begun, err := b.decided(ours)
		if err != nil {
			return err
		}
		m, err := l.run(b, ours, b.duration)
		if err != nil {
			return err
		}
		after, ended, err := b.decided(ours)
		if err != nil {
			return err
		}
		if after >= float64(b.index/removalShare) {
			break // the removal ended before the load
		}
		busy = append(busy, m.rate)
		decided = append(decided, (after-before)/ended.Sub(begun).Seconds())
	}
	if len(busy) == 0 {
		return errors.New("the removal ended before the load: try more items with -index, or a shorter -duration")
	}
	b.add("narinfos while nars are removed (second figure: while none are)", "requests/s ", busy, idle[:len(busy)], 0.8, false)
	b.addFigure("removal: decisions under that load", "items/s", median(decided), 0, false)
	return nil
}

// twoStorages makes two instances with the same items and nars, which are hard links. It returns
// paths of narinfos in random order.
func (b *bench) twoStorages(here, there string, count int) (paths []string, err error) {
	const most = 10_000 // paths
	for _, dir := range []string{here, there} {
		if err := os.MkdirAll(filepath.Join(dir, "storage", "nar", "lzip"), 0o755); err != nil {
			return nil, err
		}
	}
	if err := ensureSpace(here, int64(count)*(block+4000)); err != nil {
		return nil, err
	}
	x, err := index.Open(b.ctx, filepath.Join(here, "nar_herder.db"), index.Options{WriterCache: 128 << 20, Bulk: true})
	if err != nil {
		return nil, err
	}
	g := newGenerator(b.seed)
	nar := make([]byte, removalNar)
	added := time.Now().Add(-400 * 24 * time.Hour)
	for done := 0; done < count && err == nil; {
		err = x.Update(b.ctx, func(tx *index.Tx) error {
			for end := min(done+5000, count); done < end; done++ {
				made := g.next(removalNar)
				n, err := narinfo.Parse(made.text)
				if err != nil {
					return err
				}
				entry := x.Prepare(n)
				entry.Stored, entry.AddedAt = 1, added.Add(time.Duration(done)*time.Millisecond)
				name := filepath.Join("storage", "nar", "lzip", made.base)
				err = errors.Join(
					tx.Put(entry, nil),
					os.WriteFile(filepath.Join(here, name), nar, 0o644),
					os.Link(filepath.Join(here, name), filepath.Join(there, name)))
				if err != nil {
					return err
				}
				// The last items are not removed.
				if done >= count-most {
					paths = append(paths, "/"+made.hash+".narinfo")
				}
			}
			return nil
		})
	}
	if err := errors.Join(err, x.Close()); err != nil {
		return nil, err
	}
	// Make the copy of the index another instance.
	if err := copyFile(filepath.Join(there, "nar_herder.db"), filepath.Join(here, "nar_herder.db")); err != nil {
		return nil, err
	}
	if x, err = index.Open(b.ctx, filepath.Join(there, "nar_herder.db"), index.Options{}); err != nil {
		return nil, err
	}
	err = x.Update(b.ctx, func(tx *index.Tx) error { return tx.SetSetting("instance", "the other one") })
	return shuffled(paths, b.seed, func(path string) string { return path }), errors.Join(err, x.Close())
}

func copyFile(to, from string) error {
	source, err := os.Open(from)
	if err != nil {
		return err
	}
	defer source.Close()
	target, err := os.Create(to)
	if err != nil {
		return err
	}
	_, err = io.Copy(target, source)
	return errors.Join(err, target.Close())
}

// decided returns for how many items the server has decided whether to remove them.
func (b *bench) decided(s *server) (count float64, at time.Time, err error) {
	count, err = s.metric("narherder_removal_decisions_total")
	return count, time.Now(), err
}

// removing waits until the server has started to remove items.
func (b *bench) removing(s *server) error {
	ctx, cancel := context.WithTimeout(b.ctx, removalWait)
	defer cancel()
	for {
		count, _, err := b.decided(s)
		if err != nil || count > 0 {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("no item was removed: %w", ctx.Err())
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// decisions waits until the server has decided on wanted items, and returns the rate per second.
func (b *bench) decisions(s *server, wanted int) (rate float64, err error) {
	if err := b.removing(s); err != nil {
		return 0, err
	}
	first, begun, err := b.decided(s)
	ctx, cancel := context.WithTimeout(b.ctx, removalWait)
	defer cancel()
	for err == nil {
		var now float64
		var at time.Time
		if now, at, err = b.decided(s); err == nil && now >= float64(wanted) {
			return (now - first) / at.Sub(begun).Seconds(), nil
		}
		select {
		case <-ctx.Done():
			return 0, fmt.Errorf("only %.0f of %d were decided on: %w", now, wanted, ctx.Err())
		case <-time.After(20 * time.Millisecond):
		}
	}
	return 0, err
}
