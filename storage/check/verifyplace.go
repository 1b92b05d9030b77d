package check

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"nar-herder/narinfo"
	"nar-herder/storage/index"
)

// VerifyPlace is how far a [Checker.Verify] has come that was stopped before its
// end. The zero value says that there is none.
type VerifyPlace struct {
	Begun time.Time
	// Files were read, of so many Bytes.
	Files, Bytes int64

	// after is the place of the last item that needs not be looked at again.
	after int64
	// again are items before it that were wrong, and may still be.
	again []narinfo.PathHash
}

// mostAgain bounds what is written down. When so many are wrong, the place is not
// moved on any more.
const mostAgain = 1000

// verifySetting is the name that the place has among the index's settings.
const verifySetting = "verify-place"

// savedPlace is a VerifyPlace in the index.
type savedPlace struct {
	Begun time.Time `json:"begun"`
	Files int64     `json:"files"`
	Bytes int64     `json:"bytes"`
	After int64     `json:"after"`
	Again []string  `json:"again,omitempty"`
}

// VerifyPlace returns how far a Verify has come that did not get to its end.
func (c *Checker) VerifyPlace(ctx context.Context) (place VerifyPlace, err error) {
	text, err := c.index.Setting(ctx, verifySetting)
	if err != nil || text == "" {
		return VerifyPlace{}, err
	}
	var saved savedPlace
	err = json.Unmarshal([]byte(text), &saved)
	place = VerifyPlace{saved.Begun, saved.Files, saved.Bytes, saved.After, nil}
	for _, name := range saved.Again {
		hash, parseErr := narinfo.ParsePathHash(name)
		if err == nil {
			err = parseErr
		}
		place.again = append(place.again, hash)
	}
	if err != nil {
		return VerifyPlace{}, fmt.Errorf("how far the last check came, in %s, can't be read: begin anew: %w", c.index.Path(), err)
	}
	return place, nil
}

// saveVerifyPlace writes the place down, or forgets it when all is done.
func (c *Checker) saveVerifyPlace(ctx context.Context, place VerifyPlace, ended bool) error {
	text := ""
	if !ended {
		saved := savedPlace{place.Begun, place.Files, place.Bytes, place.after, nil}
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
