package convert

import (
	"cmp"
	"context"
	"errors"

	"nar-herder/mirror/original"
	"nar-herder/narinfo"
	"nar-herder/storage"
	"nar-herder/storage/index"
)

// changes converts the log, and finishes the conversion.
func (c *conversion) changes(ctx context.Context) error {
	var batch []index.Change
	var odd int64
	var settings map[string]string
	last := c.state.LastChange
	flush := func(complete bool) error {
		err := c.update(ctx, func(tx *index.Tx, s *state) error {
			for _, change := range batch {
				if err := tx.PutChange(change); err != nil {
					return err
				}
			}
			for name, value := range settings {
				if err := tx.SetSetting(name, value); err != nil {
					return err
				}
			}
			s.LastChange = last
			s.Result.Changes += int64(len(batch))
			s.Result.LeftOut += odd
			s.Complete = complete
			return nil
		}, nil)
		batch, odd = batch[:0], 0
		return err
	}
	for change, err := range c.source.ChangesAfter(ctx, c.state.LastChange) {
		var row *original.RowError
		if err != nil && !errors.As(err, &row) {
			return err
		}
		last = change.ID
		var converted index.Change
		if err == nil {
			converted, err = changeOf(change)
		}
		if err != nil {
			c.problems.row(err)
			odd++
			continue
		}
		batch = append(batch, converted)
		if len(batch) == cmp.Or(c.rows, batchRows) {
			if err := flush(false); err != nil {
				return err
			}
		}
	}
	if c.Settings != nil {
		var err error
		if settings, err = c.Settings(ctx, c.source); err != nil {
			return err
		}
	}
	return flush(true)
}

// changeOf is a change as the index has it: the text of an addition is the item's.
func changeOf(change original.Change) (index.Change, error) {
	converted := index.Change{At: change.At, Kind: index.Added}
	var path narinfo.StorePath
	var err error
	if change.Removal {
		path, err = narinfo.ParseStorePath(change.Data)
		converted.Kind, converted.StorePath = index.Removed, change.Data
	} else {
		var n *narinfo.Narinfo
		if n, err = storage.Admit([]byte(change.Data)); err == nil {
			path = n.StorePath
		}
	}
	if err != nil {
		return converted, &original.RowError{Table: "recent_changes", ID: change.ID, Err: err}
	}
	converted.Hash = path.Hash
	return converted, nil
}
