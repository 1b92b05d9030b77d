// Package dbspace watches the file system of the database: it warns before that is
// full, and keeps some room there by which items can still be removed when it is.
package dbspace

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"nar-herder/internal/disk"
	"nar-herder/storage/index"
)

// interval is how often the watch looks.
const interval = 10 * time.Second

// Watch is a [prometheus.Collector] of its metrics.
type Watch struct {
	index     *index.Index
	directory string
	log       *slog.Logger
	look      disk.Look
	gauge     prometheus.GaugeFunc

	// Note writes what the server could not at its start, as there was no room: Run
	// calls it until it succeeds. nil for nothing.
	Note func(ctx context.Context) error

	// What Run has logged.
	state   state
	failing bool
	unkept  bool
	small   bool
}

// New makes a watch of the index's file system. look finds out about that; nil for
// [disk.Room].
func New(x *index.Index, look disk.Look, log *slog.Logger) *Watch {
	if look == nil {
		look = disk.Room
	}
	w := &Watch{index: x, directory: x.Directory(), log: log, look: look}
	w.gauge = prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "narherder_database_free_bytes", Help: "Free bytes on the file system of the database.",
	}, func() float64 {
		free, _, err := w.look(w.directory)
		if err != nil {
			return math.NaN()
		}
		return float64(free)
	})
	return w
}

// state is how full the file system is.
type state int

const (
	roomy state = iota
	// low: less than [disk.Reserve] is free. Dumps are not made then, either.
	low
	// full: nothing is written any more but removals, from the index's reserve.
	full
	// readOnly: nothing is written at all. There was no room to open the database.
	readOnly
)

// now takes a look. isSmall says that the reserve may not be enough.
func (w *Watch) now() (is state, isSmall bool, free int64, err error) {
	free, size, err := w.look(w.directory)
	if err != nil {
		return roomy, false, 0, err
	}
	isSmall = size < index.LeastDisk
	reserve, err := w.index.Reserve()
	switch {
	case w.index.IsFull():
		return readOnly, isSmall, free, nil
	case err != nil:
		return roomy, isSmall, free, err
	case reserve == index.ReserveUsed:
		return full, isSmall, free, nil
	case free < disk.Reserve(size):
		return low, isSmall, free, nil
	}
	return roomy, isSmall, free, nil
}

// fullText names both ways out.
const fullText = "the file system of the database is full: items can only be removed until there is room: make room there, or remove items until enough of the database is free for others; the errors of imports say how much"

// readOnlyText says that writes fail.
const readOnlyText = "the file system of the database is full, and was at the start: nothing can be written, items can neither be added nor removed, and the server only answers requests: make room there; it goes back to normal by itself then"

// smallText says what a small file system means.
var smallText = fmt.Sprintf("the file system of the database is smaller than %d MiB: removals may fail when nothing is free there", index.LeastDisk>>20)

// Run keeps the index's reserve, and logs when the file system becomes full and when it
// has room again, until the context ends.
func (w *Watch) Run(ctx context.Context) {
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	for {
		w.step(ctx)
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

func (w *Watch) step(ctx context.Context) {
	if err := w.index.Resume(ctx); err != nil && ctx.Err() == nil {
		w.log.Warn("the database can't be opened for writing yet; that is tried again", "error", err)
	}
	var err error
	if !w.index.IsFull() {
		_, err = w.index.KeepReserve()
	}
	if w.Note != nil && !w.index.IsFull() {
		switch err := w.Note(ctx); {
		case err == nil:
			w.Note = nil
			w.log.Info("the options that could not be noted in the database are noted now")
		case !errors.Is(err, index.ErrFull) && ctx.Err() == nil:
			w.log.Warn("options can't be noted in the database yet; that is tried again", "error", err)
		}
	}
	if err != nil && !w.unkept {
		w.log.Error("can't keep room for removals beside the database: they will fail when its file system is full", "error", err)
	}
	w.unkept = err != nil
	is, isSmall, free, err := w.now()
	if err != nil {
		if !w.failing {
			w.log.Error("can't find out how much is free on the file system of the database", "error", err)
		}
		w.failing = true
		return
	}
	w.failing = false
	if isSmall && !w.small {
		w.log.Warn(smallText, "directory", w.directory)
	}
	w.small = isSmall
	if is == w.state {
		return
	}
	w.state = is
	switch is {
	case readOnly:
		w.log.Error(readOnlyText, "directory", w.directory, "free", free)
	case full:
		w.log.Error(fullText, "directory", w.directory, "free", free)
	case low:
		w.log.Warn("the file system of the database is nearly full: make room there", "directory", w.directory, "free", free)
	default:
		w.log.Info("the file system of the database has room again", "directory", w.directory, "free", free)
	}
}

// Warnings are for the health.
func (w *Watch) Warnings() (warnings []string) {
	is, isSmall, free, err := w.now()
	if isSmall {
		warnings = append(warnings, smallText)
	}
	switch {
	case err != nil:
		return append(warnings, "can't find out how much is free on the file system of the database: see the log")
	case is == readOnly:
		return append(warnings, readOnlyText)
	case is == full:
		return append(warnings, fullText)
	case is == low:
		return append(warnings, fmt.Sprintf("the file system of the database is nearly full: %d bytes are free", free))
	}
	return warnings
}

// Describe implements [prometheus.Collector].
func (w *Watch) Describe(descs chan<- *prometheus.Desc) { w.gauge.Describe(descs) }

// Collect implements [prometheus.Collector].
func (w *Watch) Collect(values chan<- prometheus.Metric) { w.gauge.Collect(values) }
