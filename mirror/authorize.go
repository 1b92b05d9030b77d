package mirror

import (
	"context"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"nar-herder/mirror/apply"
	"nar-herder/mirror/cursor"
	"nar-herder/storage"
)

// authorize drops the additions that no authorized key has signed, and records them in the
// cursor. Without keys, it keeps all.
func (m *Mirror) authorize(changes []apply.Change, at *cursor.Cursor) []apply.Change {
	if m.Keys == nil {
		return changes
	}
	failures := make([]error, len(changes))
	var next atomic.Int64
	var running sync.WaitGroup
	for range min(runtime.GOMAXPROCS(0), len(changes)) {
		running.Go(func() {
			for i := next.Add(1) - 1; i < int64(len(changes)); i = next.Add(1) - 1 {
				if n := changes[i].Narinfo; n != nil {
					failures[i] = storage.Authorize(n, m.Keys)
				}
			}
		})
	}
	running.Wait()
	kept := changes[:0]
	for i, err := range failures {
		if err == nil {
			kept = append(kept, changes[i])
		} else {
			m.refuse(changes[i].Narinfo.StorePath.String(), err, at)
		}
	}
	clear(changes[len(kept):])
	return kept
}

// refuse records in the cursor that a narinfo of the source was refused, and logs one for each
// reason.
func (m *Mirror) refuse(item string, err error, at *cursor.Cursor) {
	reason := storage.Reason(err)
	at.Refused = at.Refused.With(m.Keys, reason, 1, m.Now())
	m.status.refused(at.Refused)
	if m.refusedLogged.IsDue(string(reason), m.Now()) {
		m.Log.Warn("refused a narinfo of the source because of its signature; others with the same reason are only counted", "source", m.Source.String(), "item", item, "reason", string(reason), "error", err)
	}
}

// debtRetry is the pause after a failed attempt to get what was refused with other keys.
const debtRetry = time.Hour

// payRefused resyncs if narinfos were refused with other keys than those of now. It returns
// true if the cursor has changed. After a failure, the mirror follows as before.
func (m *Mirror) payRefused(ctx context.Context, at cursor.Cursor) bool {
	if !at.Refused.IsOutdated(m.Keys) || m.Now().Sub(m.refusedLooked) < debtRetry {
		return false
	}
	m.refusedLooked = m.Now()
	at.Since = time.Time{} // the dump of an original is older than the changes that were followed
	err := m.resync(ctx, at, "the authorized keys have changed, and narinfos were refused before")
	if err != nil && ctx.Err() == nil {
		m.Log.Warn("can't get the narinfos that were refused with other keys: retrying later", "source", m.Source.String(), "retry_in", debtRetry, "error", err)
	}
	return err == nil
}
