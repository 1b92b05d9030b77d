// Package sourcedump downloads and checks the database dump that a mirror's source
// publishes, and remembers one that was rejected.
package sourcedump

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"nar-herder/internal/disk"
	"nar-herder/mirror/health"
	"nar-herder/peer"
	"nar-herder/peer/download"
)

// Loader loads dumps of a source. It is used by one goroutine at a time.
type Loader struct {
	Source *peer.Peer
	// Downloads is the prefix of the names of downloaded files.
	Downloads string
	Log       *slog.Logger
	Now       func() time.Time
	// Progress receives a line about work that takes long.
	Progress func(string)

	rejected rejected
	// room looks at the disk; nil for the system's.
	room disk.Look
}

// Downloads returns the prefix of the downloads beside a database.
func Downloads(database string) string { return database + ".mirror" }

// rejected is a dump that can't be used. It is neither downloaded nor merged again while
// the source publishes it.
type rejected struct {
	tag string
	at  time.Time
	// err is the reason; nil if the dump may have been damaged on its way.
	err error
}

// retryAfter is when a bad dump, or one without a tag, is tried again.
const retryAfter = time.Hour

// Rejected returns the reason why the dump was rejected that the source publishes now; nil
// if it wasn't.
func (l *Loader) Rejected(ctx context.Context) error {
	if l.rejected.err == nil {
		return nil
	}
	tag, _, err := download.Look(ctx, l.Source, peer.DumpPath, true)
	if err != nil {
		return err
	}
	var refused *health.RefusedError
	expires := tag == "" || !errors.As(l.rejected.err, &refused)
	if tag != l.rejected.tag || expires && l.Now().Sub(l.rejected.at) >= retryAfter {
		return nil
	}
	return l.rejected.err
}

// HasRejected reports whether the last dump was rejected.
func (l *Loader) HasRejected() bool { return l.rejected.err != nil }

// note records the outcome of using a dump.
func (l *Loader) note(d *Dump, err error) {
	var refused *health.RefusedError
	isBad := errors.Is(err, health.ErrBadDump)
	switch {
	case errors.As(err, &refused), errors.Is(err, health.ErrOldDump), isBad && (d.Verified || d.Tag != "" && d.Tag == l.rejected.tag):
		l.rejected = rejected{d.Tag, l.Now(), err}
	case isBad:
		l.rejected = rejected{tag: d.Tag} // it may have been damaged on its way
	default:
		l.rejected = rejected{}
	}
}

// IsBegun reports whether part of a dump has been downloaded.
func (l *Loader) IsBegun() bool { return download.IsBegun(peer.DumpPath, l.name()) }

// Fetch downloads the source's dump and opens it. The caller ends its use with
// [Loader.Close].
func (l *Loader) Fetch(ctx context.Context) (*Dump, error) {
	name := l.name()
	file, err := download.Fetch(ctx, l.Source, peer.DumpPath, name, true, Progress("downloading the dump", l.Now, l.Progress))
	if err != nil {
		return nil, err
	}
	d := &Dump{name: name, database: name, Verified: file.Verified, Modified: file.Modified, Tag: file.Tag}
	if file.Encoding == "zstd" {
		d.database = name + decompressedSuffix
		if err := bad(decompress(ctx, name, d.database, l.room)); err != nil {
			return nil, l.Close(ctx, d, fmt.Errorf("decompress the dump of %s: %w", l.Source, err))
		}
	}
	if err := d.open(ctx, func() { l.Progress("checking the dump") }); err != nil {
		return nil, l.Close(ctx, d, fmt.Errorf("open the dump of %s: %w", l.Source, err))
	}
	return d, nil
}

// Close closes a dump after its use, which ended with the error, and returns that error.
// It removes the download, which may have taken a day, only if the dump was used or can't
// be.
func (l *Loader) Close(ctx context.Context, d *Dump, err error) error {
	l.note(d, err)
	if closeErr := d.Close(); closeErr != nil {
		l.Log.Warn("can't close the dump", "error", closeErr)
	}
	if ctx.Err() != nil {
		return err // freeing gigabytes would delay the end of the program
	}
	var removeErr error
	if err == nil || errors.Is(err, health.ErrBadDump) || errors.Is(err, health.ErrOldDump) {
		removeErr = l.Discard()
	} else if d.database != d.name {
		removeErr = download.Discard(d.database) // decompressing it again takes little time
	}
	if removeErr != nil {
		l.Log.Warn("can't remove the downloaded dump", "error", removeErr)
	}
	return err
}

// decompressedSuffix is added to the name of a dump for its decompressed form.
const decompressedSuffix = ".db"

func (l *Loader) name() string { return l.Downloads + ".dump" }

// Discard removes a downloaded dump, or part of one.
func (l *Loader) Discard() error {
	return errors.Join(download.Discard(l.name()+decompressedSuffix), download.Discard(l.name()))
}

// Progress returns a function that reports the progress of a download once a second.
func Progress(what string, now func() time.Time, report func(string)) func(done, total int64) {
	const mega = 1 << 20
	var last time.Time
	return func(done, total int64) {
		now := now()
		if now.Sub(last) < time.Second {
			return
		}
		last = now
		if total < 0 {
			report(fmt.Sprintf("%s: %d MiB so far", what, done/mega))
		} else {
			report(fmt.Sprintf("%s: %d of %d MiB", what, done/mega, total/mega))
		}
	}
}
