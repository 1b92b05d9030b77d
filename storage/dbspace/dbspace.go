// Package dbspace watches the free space of the database's file system. It warns before the
// file system is full, and keeps a reserve that removals can use when it is.
package dbspace

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"nar-herder/internal/disk"
	"nar-herder/internal/gauge"
	"nar-herder/internal/logonce"
	"nar-herder/storage/index"
)

// interval is the time between checks.
const interval = 10 * time.Second

// Watch watches the file system, and is a [prometheus.Collector] of its metrics.
type Watch struct {
	index     *index.Index
	directory string
	log       *slog.Logger
	look      disk.Look
	gauge     prometheus.Collector

	// Note, if not nil, writes the data that the server could not write at its start
	// because the disk was full. Run calls it until it succeeds.
	Note func(ctx context.Context) error

	// The conditions that Run has logged.
	state   state
	failing bool
	unkept  bool
	small   bool
	// closed and unnoted remember what else it has logged.
	closed, unnoted logonce.Filter
}

// New returns a watch of the index's file system. look returns its free space; nil means
// [disk.Room].
func New(x *index.Index, look disk.Look, log *slog.Logger) *Watch {
	if look == nil {
		look = disk.Room
	}
	w := &Watch{index: x, directory: x.Directory(), log: log, look: look}
	w.gauge = gauge.Optional("narherder_database_free_bytes", "Free bytes on the file system of the database; missing if unknown.", nil, func() (float64, bool) {
		free, _, err := w.look(w.directory)
		return float64(free), err == nil
	})
	return w
}

// state is the fill state of the file system.
type state int

const (
	roomy state = iota
	// low means that less than [disk.Reserve] is free. The server makes no dumps then.
	low
	// full means that only removals may write, using the index's reserve.
	full
	// readOnly means that nothing may write: there was no room to open the database.
	readOnly
)

// check returns the present state. isSmall means that the reserve may not be sufficient.
func (w *Watch) check() (is state, isSmall bool, free int64, err error) {
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

// fullText names both solutions.
const fullText = "the file system of the database is full: only removals are possible: make room there, or remove items until the database has enough free pages for imports; their errors say how much they need"

const readOnlyText = "the file system of the database has been full since the server started: nothing can be written: the server answers requests, but can neither add nor remove items: make room there; no restart is needed"

var smallText = fmt.Sprintf("the file system of the database is smaller than %d MiB: removals may fail when nothing is free there", index.LeastDisk>>20)

// Run maintains the index's reserve, and logs when the file system becomes full and when it
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
	if err := w.index.Resume(ctx); err == nil {
		w.closed.Over(w.log, "the database is open for writing again")
	} else if ctx.Err() == nil {
		w.closed.Log(w.log, slog.LevelWarn, time.Now(), "the database can't be opened for writing: will retry", "error", err)
	}
	var err error
	if !w.index.IsFull() {
		_, err = w.index.KeepReserve()
	}
	if w.Note != nil && !w.index.IsFull() {
		switch err := w.Note(ctx); {
		case err == nil:
			w.Note = nil
			w.log.Info("recorded the options in the database, which could not be done before")
		case !errors.Is(err, index.ErrFull) && ctx.Err() == nil:
			w.unnoted.Log(w.log, slog.LevelWarn, time.Now(), "can't record the options in the database: will retry", "error", err)
		}
	}
	if err != nil && !w.unkept {
		w.log.Error("can't create the reserve of the database: removals will fail if its file system is full", "error", err)
	} else if err == nil && w.unkept {
		w.log.Info("the reserve of the database exists again")
	}
	w.unkept = err != nil
	is, isSmall, free, err := w.check()
	if err != nil {
		if !w.failing {
			w.log.Error("can't check the free space of the file system of the database", "error", err)
		}
		w.failing = true
		return
	}
	if w.failing {
		w.log.Info("the free space of the file system of the database is known again")
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

// Warnings returns the present warnings for the health check.
func (w *Watch) Warnings() (warnings []string) {
	is, isSmall, free, err := w.check()
	if isSmall {
		warnings = append(warnings, smallText)
	}
	switch {
	case err != nil:
		return append(warnings, "can't check the free space of the file system of the database: see the log")
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
