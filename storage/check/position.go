package check

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"nar-herder/narinfo"
	"nar-herder/storage/index"
)

// VerifyPosition is the position of an interrupted [Checker.Verify]. The zero value is the
// beginning.
type VerifyPosition struct {
	Begun time.Time
	// Files is the number of files that were read, and Bytes their length.
	Files, Bytes int64

	// after is the position of the last item that was verified.
	after int64
	// again are items before it that were wrong, and must be verified again.
	again []narinfo.PathHash
}

// mostAgain bounds the hashes that are saved. With so many wrong items, the position
// advances no further.
const mostAgain = 1000

// verifySetting names the index setting that holds the position.
const verifySetting = "verify-place"

// savedPosition is a VerifyPosition in the index.
type savedPosition struct {
	Begun time.Time `json:"begun"`
	Files int64     `json:"files"`
	Bytes int64     `json:"bytes"`
	After int64     `json:"after"`
	Again []string  `json:"again,omitempty"`
}

// VerifyPosition returns the position of the last Verify if that did not reach its end.
func (c *Checker) VerifyPosition(ctx context.Context) (place VerifyPosition, err error) {
	text, err := c.index.Setting(ctx, verifySetting)
	if err != nil || text == "" {
		return VerifyPosition{}, err
	}
	var saved savedPosition
	err = json.Unmarshal([]byte(text), &saved)
	place = VerifyPosition{saved.Begun, saved.Files, saved.Bytes, saved.After, nil}
	for _, name := range saved.Again {
		hash, parseErr := narinfo.ParsePathHash(name)
		if err == nil {
			err = parseErr
		}
		place.again = append(place.again, hash)
	}
	if err != nil {
		return VerifyPosition{}, fmt.Errorf("can't read the position of the last check in %s: begin anew: %w", c.index.Path(), err)
	}
	return place, nil
}

// saveVerifyPosition saves the position, or deletes it when Verify has reached its end.
func (c *Checker) saveVerifyPosition(ctx context.Context, place VerifyPosition, ended bool) error {
	text := ""
	if !ended {
		saved := savedPosition{place.Begun, place.Files, place.Bytes, place.after, nil}
		for _, hash := range place.again {
			saved.Again = append(saved.Again, hash.String())
		}
		encoded, err := json.Marshal(saved)
		if err != nil {
			return err
		}
		text = string(encoded)
	}
	return c.index.Update(ctx, func(tx *index.Tx) error { return tx.SetSetting(verifySetting, text) })
}
