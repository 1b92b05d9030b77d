package room

import "context"

// Unfit records a file for which there was no room.
func (r *Room) Unfit(ctx context.Context) {
	usage, usageErr := r.Usage(ctx)
	spare, _, spareErr := r.Storage.Spare(ctx)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.unfits++
	if usageErr == nil && spareErr == nil {
		r.unfitUsage, r.unfitSpare = max(usage, 0), spare
	}
}

// Fit records a file for which there was room.
func (r *Room) Fit() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.unfits = 0
}

// Retry forgets all files that did not fit, which are tried again now.
func (r *Room) Retry() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.unfits, r.unfitUsage = 0, -1
}

// IsHopeless reports whether so many files in a row did not fit that others won't either.
func (r *Room) IsHopeless() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.unfits >= maxUnfit
}

// HasUnfit reports whether files did not fit since [Room.Retry].
func (r *Room) HasUnfit() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.unfitUsage >= 0
}

// HasGrown reports whether there is considerably more room than when files last did not fit, so
// that trying them again pays.
func (r *Room) HasGrown(ctx context.Context) bool {
	r.mu.Lock()
	usage, spare := r.unfitUsage, r.unfitSpare
	r.mu.Unlock()
	if limit := r.Limit; limit >= 0 {
		if is, err := r.Usage(ctx); err == nil && is < usage-limit/margin {
			return true
		}
	}
	is, minimum, err := r.Storage.Spare(ctx)
	return err == nil && minimum >= 0 && is > spare+minimum/margin
}
