package scrub

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"nar-herder/storage"
	"nar-herder/storage/bytestore"
	"nar-herder/storage/check"
	"nar-herder/storage/index"
	"nar-herder/storage/owner"
)

// found repairs a finding, or the error in its place, counts it and logs one line. done is true if
// it is repaired, or its file is no longer recorded as stored. The returned error ends the pass.
func (s *Scrubber) found(ctx context.Context, finding check.Finding, failure error, items int64) (done bool, err error) {
	if s.findings++; s.findings > max(maxFindings, items/findingShare) {
		return false, fmt.Errorf("%w: more than %d findings, the last: %s %s: check the disk, the file system and the memory, and that all is mounted; 'nar-herder check --verify --repair' repairs without this limit",
			errStorage, s.findings-1, finding.Kind, finding.Name)
	}
	if finding.Kind == check.Missing && failure == nil {
		if err := s.isMounted(ctx, finding); err != nil {
			return false, err
		}
	}
	s.metrics.found(finding.Kind).Inc()
	attributes := []any{"kind", finding.Kind.String()}
	if finding.Item != nil {
		attributes = append(attributes, "item", finding.Item.Narinfo.StorePath.String())
	}
	if finding.Name != "" {
		attributes = append(attributes, "file", finding.Name)
	}
	if finding.Note != "" {
		attributes = append(attributes, "note", finding.Note)
	}
	if failure != nil {
		s.log.Warn("the scrub can't verify a stored nar, and will retry", append(attributes, "error", failure)...)
		return false, nil
	}
	repair := s.repairer.Repair(ctx, finding)
	if ctx.Err() != nil {
		return false, ctx.Err()
	}
	attributes = append(attributes, "repair", repair.Outcome.String())
	if repair.Note != "" {
		attributes = append(attributes, "source", repair.Note)
	}
	if repair.Quarantined != "" {
		attributes = append(attributes, "quarantined", repair.Quarantined)
	}
	if repair.Err != nil {
		attributes = append(attributes, "error", repair.Err)
	}
	level := slog.LevelError
	if repair.Mended {
		level = slog.LevelWarn
		s.metrics.repaired.Inc()
	}
	s.log.Log(ctx, level, "the scrub has found damage", attributes...)
	return repair.Mended || repair.Outcome == check.Unclaimed || repair.Outcome == check.SetAside, nil
}

// isMounted returns an error for a missing nar if others are missing too: a file system is probably
// not mounted. Nars that the scrub has moved to the quarantine don't count.
func (s *Scrubber) isMounted(ctx context.Context, finding check.Finding) error {
	if _, err := s.storage.ByteStore().Stat(ctx, bytestore.QuarantineFolder+finding.Name); err == nil {
		return nil
	}
	if s.missing++; s.missing > maxMissing {
		return fmt.Errorf("%w: more than %d nars are missing, the last: %s: is everything mounted? If they are lost, 'nar-herder check --repair' fetches them or records that", errStorage, maxMissing, finding.Name)
	}
	if err := owner.IsComplete(ctx, s.storage); err != nil {
		return fmt.Errorf("%w: %s is missing, and not only that: %w", errStorage, finding.Name, err)
	}
	return nil
}

// lost tries to get the nars of hidden items again: from a source, or from the storage, where
// they may be back after its file system was mounted.
func (s *Scrubber) lost(ctx context.Context) error {
	var cursor index.LostCursor
	for more := true; more; {
		var page []*index.Item
		var err error
		if page, more, err = s.index.Lost(ctx, &cursor, pageItems); err != nil {
			return err
		}
		for _, row := range page {
			if s.isWaiting(row.Hash) {
				continue
			}
			item, err := storage.NewItem(row)
			if err != nil {
				continue // damage, which the check of the texts finds
			}
			mended, err := s.findAgain(ctx, item)
			if err != nil {
				return err
			}
			if mended {
				delete(s.retries, row.Hash)
				s.metrics.repaired.Inc()
			} else {
				s.failed(row.Hash, true) // it is counted as lost
			}
		}
	}
	return nil
}

// findAgain tries to get the nars of one item again.
func (s *Scrubber) findAgain(ctx context.Context, item *storage.Item) (mended bool, err error) {
	for _, name := range item.NarNames() {
		finding, err := s.checker.CompareFile(ctx, item.Hash, name)
		if err != nil {
			continue
		}
		if finding.Kind == check.Unrecorded {
			repair := s.repairer.Repair(ctx, finding)
			mended = mended || repair.Outcome == check.Recorded
		}
	}
	if !mended {
		repair := s.repairer.Repair(ctx, check.Finding{Kind: check.Unstored, Item: item})
		mended = repair.Outcome == check.Fetched
	}
	if ctx.Err() != nil {
		return false, ctx.Err()
	}
	if mended {
		s.log.Info("the nars of an item that was hidden from clients are stored again", "item", item.Narinfo.StorePath.String())
	}
	return mended, nil
}

// Warnings returns warnings for the health.
func (s *Scrubber) Warnings() (warnings []string) {
	now := s.state.Load()
	if now.unrepaired > 0 {
		warnings = append(warnings, fmt.Sprintf("stored nars of %s are damaged, missing or unreadable, and not repaired yet: see the log", count(now.unrepaired, "item")))
	}
	if now.lost > 0 {
		warnings = append(warnings, fmt.Sprintf("the nars of %s are lost, so clients don't get the narinfos: import them again, or name an instance that has them with --repair-from", count(now.lost, "item")))
	}
	if now.texts > 0 {
		warnings = append(warnings, fmt.Sprintf("the scrub has found damage of the index, in %s, that is not repaired: run 'nar-herder check'", count(now.texts, "place")))
	}
	if now.failure != nil {
		text := "the scrub has stopped, and will retry: see the log"
		if errors.Is(now.failure, errStorage) {
			text = "the scrub has stopped, as too much is missing, damaged or unreadable: see the log"
		}
		warnings = append(warnings, text)
	}
	if now.slow != "" {
		warnings = append(warnings, now.slow)
	}
	return warnings
}

// count returns a number with a noun.
func count(n int64, noun string) string {
	if n != 1 {
		noun += "s"
	}
	return fmt.Sprintf("%d %s", n, noun)
}
