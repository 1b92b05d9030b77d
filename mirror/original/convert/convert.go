// Package convert turns a database of the original Nar Herder into an index of
// this program, and back.
//
// A conversion builds a file beside the place where it is to be, and puts it
// there when it is whole. What it reads from is left as it is.
package convert

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"time"

	"nar-herder/mirror/original"
	"nar-herder/storage/bytestore"
	"nar-herder/storage/index"
)

// Options of a conversion; the zero value is good.
type Options struct {
	// Log takes what operators should know; nil drops it.
	Log *slog.Logger
	// Storage is where nars are looked for, so that the index knows from the
	// start which of them are there; nil for nowhere. Only the conversion to an
	// index makes use of it.
	Storage Looker
	// Mirrored has all items count as those that the mirrored instance has, which
	// was followed with what is converted. Only the conversion to an index makes
	// use of it, as of Settings.
	Mirrored bool
	// Settings returns what the index is to have as settings when it is finished,
	// by their names; nil for none.
	Settings func(ctx context.Context, from *original.Database) (map[string]string, error)
	// Progress is called now and then, by one goroutine at a time; it may be nil.
	Progress func(Progress)
	// Now is the clock for what has no time of its own; nil is the system's.
	Now func() time.Time

	rows int // of a batch; 0 for batchRows, which tests can't wait for
}

// Looker is the part of a [bytestore.Store] that finds out whether nars are
// there.
type Looker interface {
	Stat(ctx context.Context, name string) (bytestore.Info, error)
	Concurrency() int
}

// Progress is how far a conversion has come.
type Progress struct {
	// Done of All narinfos are converted. What was done by an earlier run that
	// was interrupted counts.
	Done, All int64
}

// Result is what a conversion did, with earlier runs of it that were
// interrupted.
type Result struct {
	// Items, Tagged, Cached and Changes are what was converted: narinfos, those
	// with tags, cached nars, and rows of the log of changes.
	Items, Tagged, Cached, Changes int64
	// Stored is how many nars are in the storage.
	Stored int64
	// Repeated are narinfos of items that had one already; the last one counts.
	Repeated int64
	// LeftOut are rows that can't be made sense of, and Withdrawn items that
	// clients are told of no more: neither is in what was made.
	LeftOut, Withdrawn int64
	// Unknown are nars of which could not be found out whether they are in the
	// storage. The index has them as not there.
	Unknown int64
	// Resumed says that an earlier run had been interrupted.
	Resumed bool `json:"-"`
	// ToOriginal says that what was made is a database of the original.
	ToOriginal bool `json:"-"`
}

// String tells the result in one line.
func (r Result) String() string {
	text := fmt.Sprintf("%d narinfos, %d of them with tags, %d cached nars, %d changes", r.Items, r.Tagged, r.Cached, r.Changes)
	for _, part := range []struct {
		count int64
		what  string
	}{
		{r.Stored, "nars are in the storage"},
		{r.Repeated, "narinfos came again, and the last one of each item counts"},
		{r.Withdrawn, "items are about to be removed, and were left out"},
		{r.LeftOut, "rows make no sense, and were left out"},
		{r.Unknown, "nars could not be looked for: run 'nar-herder check'"},
	} {
		if part.count > 0 {
			text += fmt.Sprintf("; %d %s", part.count, part.what)
		}
	}
	return text
}

// unfinished and written are put behind the name of a file while it is being
// made: an index, which can be gone on with, and a database of the original,
// which can't.
const (
	unfinished = ".converting"
	written    = ".writing"
)

// Convert makes a database of the original at from an index at to, and an index
// a database of the original. There must be nothing at to, an error that is
// [fs.ErrExist].
func Convert(ctx context.Context, from, to string, o Options) (Result, error) {
	if err := isFree(to); err != nil {
		return Result{}, err
	}
	if _, err := os.Stat(from); err != nil {
		return Result{}, fmt.Errorf("%w: name a database to convert", err)
	}
	x, indexErr := index.Open(ctx, from, index.Options{Access: index.Read})
	switch {
	case indexErr == nil:
		return toOriginal(ctx, x, from, to, o)
	case errors.Is(indexErr, index.ErrOlderVersion), errors.Is(indexErr, index.ErrNewerVersion):
		return Result{}, indexErr
	}
	database, err := original.Open(ctx, from)
	switch {
	case errors.Is(err, original.ErrNotOriginal):
		return Result{}, indexErr
	case err != nil:
		return Result{}, err
	}
	if err := database.Close(); err != nil {
		return Result{}, err
	}
	result, err := toIndex(ctx, from, to+unfinished, o)
	if err != nil {
		return result, err
	}
	return result, putInPlace(to+unfinished, to)
}

// logged is how many rows that make no sense are logged one by one.
const logged = 20

// problems logs rows that make no sense, the first ones one by one.
type problems struct {
	log   *slog.Logger
	count int
	sorry int // nars that could not be looked for
}

func (o *Options) problems() *problems {
	if o.Log == nil {
		return &problems{log: slog.New(slog.DiscardHandler)}
	}
	return &problems{log: o.Log}
}

func (p *problems) row(err error) {
	if p.count++; p.count <= logged {
		p.log.Warn("this can't be converted and is left out; the file that it is in stays", "error", err)
	}
}

func (p *problems) nar(name string, err error) {
	if p.sorry++; p.sorry <= logged {
		p.log.Warn("can't find out whether a nar is in the storage, so the index has it as not there until 'nar-herder check' has looked again", "nar", name, "error", err)
	}
}

// end tells how many there were.
func (p *problems) end() {
	if p.count > logged {
		p.log.Warn("rows could not be converted and were left out; the first ones are above", "rows", p.count)
	}
	if p.sorry > logged {
		p.log.Warn("nars could not be looked for; the first ones are above", "nars", p.sorry)
	}
}

func (o *Options) now() time.Time {
	if o.Now != nil {
		return o.Now()
	}
	return time.Now()
}

func (o *Options) progress(done, all int64) {
	if o.Progress != nil {
		o.Progress(Progress{done, max(all, done)})
	}
}

// remove deletes a database with the files beside it.
func remove(path string) error {
	var failure error
	for _, suffix := range []string{"", "-wal", "-shm", "-journal"} {
		if err := os.Remove(path + suffix); err != nil && !errors.Is(err, fs.ErrNotExist) {
			failure = errors.Join(failure, err)
		}
	}
	return failure
}
