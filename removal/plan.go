package removal

import (
	"cmp"
	"context"
	"fmt"

	"nar-herder/narinfo"
)

// Planned is an item that a server would remove or withdraw.
type Planned struct {
	StorePath narinfo.StorePath
	// Bytes is the length of its stored nars.
	Bytes int64
	// Withdraw says that the item would be withdrawn, because no other instance has its nar.
	// Otherwise only its bytes would be removed, and its narinfo still served.
	Withdraw bool
	// Criterion is the reason.
	Criterion string
}

// Plan reports what [Remover.Round] would remove, and changes nothing. reason says why it would
// not reach the goal; "" if it would. The remover must not be used for anything else.
//
// Plan assumes that the server has run for long. It doesn't know which nars clients have just
// requested, or items that match only after others are removed.
func (r *Remover) Plan(ctx context.Context, report func(Planned)) (reason string, err error) {
	usage, scanned, err := r.storage.Usage(ctx)
	if err != nil {
		return "", err
	}
	pending, err := r.index.WithdrawnStored(ctx)
	if err != nil {
		return "", err
	}
	g := goal{limit: r.limit.Load()}
	if g.limit >= 0 {
		if scanned.IsZero() {
			return "", fmt.Errorf("no server has measured this storage yet: run 'nar-herder run-server' with --storage-limit first")
		}
		g.excess = usage - pending.Size - g.limit
	}
	if err := r.lookAtSpace(ctx); err != nil {
		return "", err
	}
	g.lacking, reason = r.space.lacking()
	if g.left() <= 0 {
		return reason, nil
	}
	r.plan = report
	r.dependence.Refresh(ctx, r.introduce)
	r.dependence.AssumeSettled()
	kept, err := r.free(ctx, &g)
	return cmp.Or(kept, reason), err
}

// planned reports what would be removed, and returns how many bytes that would free.
func (r *Remover) planned(evict, withdraw []decided) (freed int64) {
	r.planning.Lock()
	defer r.planning.Unlock()
	for i, d := range append(evict, withdraw...) {
		r.plan(Planned{d.item.Narinfo.StorePath, d.item.StoredBytes(), i >= len(evict), d.by.String()})
		freed += d.size()
	}
	return freed
}
