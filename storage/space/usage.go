// Package space limits how much a storage takes: its hard limit, the free space that must
// stay on its file system, and what is reserved for bytes that are being written.
package space

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"nar-herder/storage/bytestore"
	"nar-herder/storage/index"
)

// scan is the result of [Space.Scan]. It is saved in the index for other processes.
type scan struct {
	At    time.Time `json:"at"`
	Usage int64     `json:"usage"`
	// Nars and Size are the number and length of the stored nars in the index then.
	Nars int64 `json:"nars"`
	Size int64 `json:"size"`
}

const (
	scanSetting      = "storage_survey"
	hardLimitSetting = "storage_hard_limit"

	// perNar is the average disk space that a nar takes beyond its length: half a block.
	// Usage adds it for nars that were stored since the scan. Object stores count bytes.
	perNar = 2 << 10
)

// Space is the usage and the limits of one byte store.
type Space struct {
	index *index.Index
	bytes bytestore.Store // nil for none
	log   *slog.Logger
	now   func() time.Time
	// inFlight is how many bytes this process is writing to the store, and unwritten how
	// many of them the file system does not have yet.
	inFlight, unwritten atomic.Int64
}

// New makes the Space of a byte store, nil for none.
func New(x *index.Index, bytes bytestore.Store, log *slog.Logger, now func() time.Time) *Space {
	return &Space{index: x, bytes: bytes, log: log, now: now}
}

// ErrLimit says that bytes were refused because they would exceed the hard limit of the
// storage.
var ErrLimit = errors.New("the storage is at its hard limit")

// Shortage is an error that says how much room is missing.
type Shortage struct {
	// Bytes would fit if so many others were removed.
	Bytes int64
	Err   error
}

func (s *Shortage) Error() string { return s.Err.Error() }
func (s *Shortage) Unwrap() error { return s.Err }

// Scan adds up the disk space of all files in the byte store, including temporary ones, and
// saves the sum for [Space.Usage]. Millions of files take minutes.
func (s *Space) Scan(ctx context.Context) error {
	if s.bytes == nil {
		return nil
	}
	// Read the totals first, so that bytes added meanwhile count twice rather than not at all.
	totals, err := s.index.Totals(ctx)
	if err != nil {
		return err
	}
	found := scan{At: s.now(), Nars: totals.StoredNars, Size: totals.StoredSize}
	passed := 0
	for info, err := range s.bytes.List(ctx) {
		if err != nil && info.Name == "" {
			return fmt.Errorf("measure the storage: %w", err)
		}
		if err != nil {
			// For example lost+found.
			if passed++; passed == 1 {
				s.log.Warn("a part of the storage can't be read, and is not counted", "error", err)
			}
			continue
		}
		found.Usage += info.Usage
	}
	text, err := json.Marshal(found)
	if err != nil {
		return err
	}
	return s.index.Reclaim(ctx, func(tx *index.Tx) error { return tx.SetSetting(scanSetting, string(text)) })
}

// Usage returns how many bytes the storage takes: the sum of the last scan, and the index's
// changes since. scanned is the time of that scan; zero if there was none, and the usage is
// from the index alone.
func (s *Space) Usage(ctx context.Context) (usage int64, scanned time.Time, err error) {
	totals, err := s.index.Totals(ctx)
	if err != nil {
		return 0, time.Time{}, err
	}
	text, err := s.index.Setting(ctx, scanSetting)
	if err != nil {
		return 0, time.Time{}, err
	}
	return s.usageSince(text, totals)
}

func (s *Space) usageSince(text string, totals index.Totals) (int64, time.Time, error) {
	var last scan
	if text != "" {
		if err := json.Unmarshal([]byte(text), &last); err != nil {
			return 0, time.Time{}, fmt.Errorf("the setting %s in the database: %w", scanSetting, err)
		}
	}
	usage := last.Usage + totals.StoredSize - last.Size
	if s.bytes == nil || !s.bytes.IsRemote() {
		usage += perNar * (totals.StoredNars - last.Nars)
	}
	return max(usage, 0), last.At, nil
}

// SetHardLimit makes all processes that use the index refuse bytes above the limit;
// negative for none.
func (s *Space) SetHardLimit(ctx context.Context, limit int64) error {
	return s.setLimit(ctx, hardLimitSetting, limit)
}

// setLimit stores a number of bytes; negative for none.
func (s *Space) setLimit(ctx context.Context, setting string, limit int64) error {
	text := ""
	if limit >= 0 {
		text = fmt.Sprint(limit)
	}
	// Every start calls this, so don't write the same value again.
	if now, err := s.index.Setting(ctx, setting); err != nil || now == text {
		return err
	}
	return s.index.Reclaim(ctx, func(tx *index.Tx) error { return tx.SetSetting(setting, text) })
}

// HardLimit returns the hard limit; negative for none.
func (s *Space) HardLimit(ctx context.Context) (int64, error) {
	text, err := s.index.Setting(ctx, hardLimitSetting)
	if err != nil {
		return 0, err
	}
	return parseLimit("hard limit", text)
}

// parseLimit parses a value of setLimit.
func parseLimit(what, text string) (limit int64, err error) {
	if text == "" {
		return -1, nil
	}
	if _, err := fmt.Sscan(text, &limit); err != nil {
		return 0, fmt.Errorf("the %s %q in the database: %w", what, text, err)
	}
	return limit, nil
}

// ReserveBelowLimit returns [ErrLimit] if bytes that will be written don't fit below the
// hard limit, and counts them until the reservation is released. [Reservation.Write]
// checks the free space, because some of them may be written already.
func (s *Space) ReserveBelowLimit(ctx context.Context, size int64) (*Reservation, error) {
	limit, err := s.HardLimit(ctx)
	if err != nil {
		return nil, err
	}
	r := &Reservation{s: s, size: size}
	inFlight := s.inFlight.Add(size)
	if limit < 0 {
		return r, nil
	}
	usage, _, err := s.Usage(ctx)
	if err == nil {
		err = s.fits(usage+inFlight, limit)
	}
	if err != nil {
		r.Release()
		return nil, err
	}
	return r, nil
}

// CheckIn checks, within a transaction, that bytes that are about to be committed fit
// below the hard limit beside those of all processes, and that the minimum stays free.
func (s *Space) CheckIn(tx *index.Tx, size int64) error {
	if err := s.staysFreeWith(tx); err != nil {
		return err
	}
	text, err := tx.Setting(hardLimitSetting)
	if err != nil || text == "" {
		return err
	}
	limit, err := parseLimit("hard limit", text)
	if err != nil {
		return err
	}
	totals, err := tx.Totals()
	if err != nil {
		return err
	}
	if text, err = tx.Setting(scanSetting); err != nil {
		return err
	}
	usage, _, err := s.usageSince(text, totals)
	if err != nil {
		return err
	}
	return s.fits(usage+size, limit)
}

func (s *Space) fits(usage, limit int64) error {
	if usage <= limit {
		return nil
	}
	return &Shortage{usage - limit, fmt.Errorf("%w: with the bytes being written, it would take %d bytes of %s, and %d are allowed: remove items, or raise --storage-hard-limit", ErrLimit, usage, s.bytes, limit)}
}
