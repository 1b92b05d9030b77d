// Package health describes the state of a mirror and classifies its faults.
package health

import "time"

// States of a mirror.
const (
	Syncing   = "syncing"   // it starts from what the source publishes
	Following = "following" // it applies the source's changes
	Failing   = "failing"   // it can't, and retries
	Refusing  = "refusing"  // it doesn't: see [RefusedError]
)

// Status is the state of a mirror.
type Status struct {
	Source string `json:"source"`
	State  string `json:"state"`
	// LagSeconds is how long ago this instance was known to have what the source has; -1
	// if never since the start.
	LagSeconds float64 `json:"lag_seconds"`
	// Backlog is the number of changes to apply, as far as known.
	Backlog int64 `json:"backlog"`
	// LastSuccess is when this instance was last known to have what the source has.
	LastSuccess time.Time `json:"last_success,omitzero"`
	// Failures counts those in a row, and Error is the last of them.
	Failures int    `json:"failures"`
	Error    string `json:"error,omitempty"`
	// PassedOver counts the changes that were skipped since the start because they made
	// no sense.
	PassedOver int64 `json:"passed_over"`
	// Refused counts the narinfos that were refused because of their signatures since a
	// dump of the source was used.
	Refused int64 `json:"refused,omitempty"`
	// Doing names work that takes long.
	Doing string `json:"doing,omitempty"`
}
