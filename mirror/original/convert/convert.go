// Package convert turns a database of the original Nar Herder into an index of
// this program, and back.
//
// A conversion writes a temporary file and renames it when it is complete. It doesn't change
// its input.
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

// Options of a conversion; the zero value is valid.
type Options struct {
	// Log may be nil.
	Log *slog.Logger
	// Storage is where to look for nars, so that a new index knows from the start which
	// are stored; nil for nowhere.
	Storage Looker
	// Mirrored marks all items of a new index as mirrored: the database has followed the
	// mirrored instance.
	Mirrored bool
	// Settings returns the settings of a new index; nil for none.
	Settings func(ctx context.Context, from *original.Database) (map[string]string, error)
	// Progress is called now and then, by one goroutine at a time; may be nil.
	Progress func(Progress)
	// Now is the clock for rows without a time; nil for the system's.
	Now func() time.Time

	rows int // of a batch; 0 for batchRows, which tests can't wait for
}

// Looker is the part of a [bytestore.Store] that finds out whether nars are stored.
type Looker interface {
	Stat(ctx context.Context, name string) (bytestore.Info, error)
	Concurrency() int
}

// Progress is the progress of a conversion.
type Progress struct {
	// Done of All narinfos are converted, including those of interrupted runs.
	Done, All int64
}

// Result is what a conversion did, including its interrupted runs.
type Result struct {
	// Items, Tagged, Cached and Changes count the converted narinfos, those with tags, cached
	// nars, and rows of the log of changes.
	Items, Tagged, Cached, Changes int64
	// Stored is how many nars are in the storage.
	Stored int64
	// Repeated are narinfos of items that had one already; the last one counts.
	Repeated int64
	// LeftOut are rows that make no sense, and Withdrawn items that were withdrawn: neither
	// are in the new file.
	LeftOut, Withdrawn int64
	// Unknown are nars for which the storage could not be queried. The index has them as
	// not stored.
	Unknown int64
	// Resumed says that an earlier run had been interrupted.
	Resumed bool `json:"-"`
	// ToOriginal says that the result is a database of the original.
	ToOriginal bool `json:"-"`
}

// String returns the result as one line.
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

// unfinished and written are suffixes of temporary files. unfinished is for an index, since
// its conversion can be resumed, and written for a database of the original.
const (
	unfinished = ".converting"
	written    = ".writing"
)

// Convert converts a database of the original into an index, and an index into a database of
// the original. The error is [fs.ErrExist] if the file to exists.
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

// logged is how many rows that make no sense are logged individually.
const logged = 20

// problems logs rows that make no sense, the first ones individually.
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
		p.log.Warn("skipped a row that can't be converted; the old file is kept", "error", err)
	}
}

func (p *problems) nar(name string, err error) {
	if p.sorry++; p.sorry <= logged {
		p.log.Warn("can't find out whether a nar is in the storage: it counts as missing until 'nar-herder check' has looked again", "file", name, "error", err)
	}
}

// end logs the totals.
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
