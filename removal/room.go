package removal

import (
	"context"
	"fmt"
	"time"
)

// noteWithdrawn logs that items were withdrawn, and when their bytes will be freed.
func (r *Remover) noteWithdrawn(ctx context.Context, items, bytes int64) {
	due, err := r.storage.DeleteAfter(ctx)
	if err != nil {
		return // the database fails, which others log
	}
	r.log.Info("withdrew items; their nars take room until no client can hold the narinfos", "items", items, "bytes", bytes, "freed_from", date(due))
}

func date(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// Warnings returns warnings for the health page.
func (r *Remover) Warnings() (warnings []string) {
	r.mu.Lock()
	limit, hard, stuck := r.limitWarning(), r.hardLimitWarning(), ""
	if r.stuck {
		stuck = notDeleted
	}
	r.mu.Unlock()
	for _, text := range []string{limit, hard, r.spaceWarning(), stuck} {
		if text != "" {
			warnings = append(warnings, text)
		}
	}
	return warnings
}

// limitWarning returns "" if the storage is below its limit. The mutex is held.
func (r *Remover) limitWarning() string {
	limit := r.limit.Load()
	switch isAbove := limit >= 0 && r.usage > limit; {
	case isAbove && r.warning != "":
		return r.warning + r.withdrawnNote()
	case isAbove && r.pending.Size > 0:
		return fmt.Sprintf("the storage takes %d bytes, which is above its limit of %d", r.usage, limit) + r.withdrawnNote()
	}
	return r.warning
}

// hardLimitWarning does the same for the hard limit.
func (r *Remover) hardLimitWarning() string {
	if r.hard < 0 || r.usage <= r.hard {
		return ""
	}
	return fmt.Sprintf("the storage takes %d bytes, which is above its hard limit of %d: imports and mirroring are refused", r.usage, r.hard) + r.withdrawnNote()
}

// withdrawnNote ends a warning that there is too little room. The mutex is held.
func (r *Remover) withdrawnNote() string {
	if r.pending.Size == 0 {
		return ""
	}
	note := fmt.Sprintf("; %d bytes are withdrawn nars, which are freed from %s on", r.pending.Size, date(r.pending.First))
	if r.pending.Last.Sub(r.pending.First) > time.Minute {
		note += fmt.Sprintf(", the last at %s", date(r.pending.Last))
	}
	return note
}
