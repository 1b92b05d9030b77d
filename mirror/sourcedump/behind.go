package sourcedump

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"nar-herder/internal/stamp"
	"nar-herder/mirror/cursor"
	"nar-herder/mirror/health"
	"nar-herder/peer"
)

// Behind returns the cursor after a dump, and the time of the dump's newest content.
func (l *Loader) Behind(ctx context.Context, d *Dump) (next cursor.Cursor, newest time.Time, err error) {
	info, err := d.db.Info(ctx)
	if err != nil {
		return next, newest, bad(err)
	}
	if newest, err = d.db.LastAdded(ctx); err != nil {
		return next, newest, bad(err)
	}
	changed, err := d.db.NewestChange(ctx)
	if err != nil {
		return next, newest, bad(err)
	}
	if changed.After(newest) {
		newest = changed
	}
	if info["instance"] != "" {
		next.Source, next.Instance = l.Source.String(), info["instance"]
		if next.Position, err = strconv.ParseInt(info["last_change"], 10, 64); err != nil {
			return next, newest, fmt.Errorf("%w: the number of the last change: %w", health.ErrBadDump, err)
		}
		if ok, err := l.isSources(ctx, next); ok || err != nil {
			return next, newest, err
		}
	}
	since := newest
	if since.IsZero() {
		since = d.Modified
	}
	now := l.Now()
	newest = stamp.Past(newest, now)
	if next, err = cursor.Behind(ctx, d.db, since, now); err != nil {
		return next, newest, bad(err)
	}
	if next.Since.IsZero() && !stamp.IsAhead(d.Modified, now) {
		next.Since = d.Modified
	}
	switch {
	case !next.Since.IsZero():
	case since.IsZero():
		return next, newest, fmt.Errorf("%w: nothing in it says when it was made", health.ErrBadDump)
	default: // the dump may be good: it is kept
		return next, newest, fmt.Errorf("its dump is of %s, which is ahead of this machine's clock: check the clocks of both", since.Format(time.DateTime))
	}
	next.Source, next.Dump = l.Source.String(), d.Tag
	return next, newest, nil
}

// isSources asks the source whether the numbers in its dump are its own: the dumps of an
// original that started from a dump of this program repeat what that said.
func (l *Loader) isSources(ctx context.Context, at cursor.Cursor) (bool, error) {
	reply, err := l.Source.ChangesAfter(ctx, at.Known())
	if lost := peer.AsLost(err); lost != nil {
		return lost.Instance == at.Instance, nil
	}
	if errors.Is(err, peer.ErrNoLog) {
		return false, nil
	}
	return err == nil && reply.Instance == at.Instance, err
}
