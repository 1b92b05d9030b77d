package check

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"nar-herder/storage"
	"nar-herder/storage/index"
)

// VerifyPosition is the state of an interrupted [Checker.Verify], which skips the items that
// were verified since it began. The zero value is a new one.
type VerifyPosition struct {
	Begun time.Time `json:"begun"`
	// Files is the number of files that were verified and right, and Bytes their length.
	Files int64 `json:"files"`
	Bytes int64 `json:"bytes"`
}

// verifySetting names the index setting that holds the position.
const verifySetting = "verify-place"

// VerifyPosition returns the position of the last Verify if that did not reach its end.
func (c *Checker) VerifyPosition(ctx context.Context) (place VerifyPosition, err error) {
	text, err := c.index.Setting(ctx, verifySetting)
	if err != nil || text == "" {
		return VerifyPosition{}, err
	}
	if err := json.Unmarshal([]byte(text), &place); err != nil {
		return VerifyPosition{}, fmt.Errorf("can't read the position of the last check in %s: begin anew: %w", c.index.Path(), err)
	}
	return place, nil
}

// verifiedItem is an item with right files, and when reading them began.
type verifiedItem struct {
	*storage.Item
	at time.Time
}

// save records the verified items, and the position unless Verify has reached its end.
func (v *verifying) save(ctx context.Context, ended bool) error {
	text := []byte(nil)
	if !ended {
		var err error
		if text, err = json.Marshal(v.position); err != nil {
			return err
		}
	}
	err := v.index.Update(ctx, func(tx *index.Tx) error {
		for _, item := range v.right {
			if err := storage.RecordVerified(tx, item.Item, item.at); err != nil {
				return err
			}
		}
		return tx.SetSetting(verifySetting, string(text))
	})
	if err == nil {
		clear(v.right)
		v.right = v.right[:0]
	}
	return err
}
