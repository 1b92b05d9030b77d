package importer

import (
	"fmt"
	"strings"
)

// Outcome is the result of an addition in one word.
type Outcome int

const (
	// Failed: nothing has changed.
	Failed Outcome = iota
	// Added: the item is new.
	Added
	// Known: the same narinfo was there already, with all its files.
	Known
	// Completed: the narinfo was there; missing files were added.
	Completed
	// Updated: the text was replaced by another for the same nar, such as one
	// with a new signature or in other compressions.
	Updated
	// Kept: another nar of the item is served, and stays.
	Kept
	// Replaced: another nar of the item was served before.
	Replaced
)

func (o Outcome) String() string {
	return [...]string{"failed", "added", "known", "completed", "updated", "kept", "replaced"}[o]
}

// Result is the outcome of one addition.
type Result struct {
	Outcome Outcome
	// Note explains an outcome other than the intended one.
	Note string
	// Err is set when the outcome is Failed.
	Err error
	// Bytes were added to the storage.
	Bytes int64
	// Unsigned says that the narinfo has no signature, and was accepted since no keys are
	// known.
	Unsigned bool
	// Unverified counts the files that were added without being verified, and Missing those
	// that the item was added without.
	Unverified, Missing int
}

// Summary counts the outcomes of an import.
type Summary struct {
	Outcomes [Replaced + 1]int
	Bytes    int64
	// Unsigned counts items without a signature, Unverified files that were added without
	// being verified, and Missing those that items were added without.
	Unsigned, Unverified, Missing int
}

// Count adds a result.
func (s *Summary) Count(r Result) {
	s.Outcomes[r.Outcome]++
	s.Bytes += r.Bytes
	if r.Unsigned && r.Outcome != Failed && r.Outcome != Kept {
		s.Unsigned++
	}
	s.Unverified += r.Unverified
	s.Missing += r.Missing
}

// String lists the outcomes that occurred.
func (s *Summary) String() string {
	var parts []string
	for outcome, n := range s.Outcomes {
		if n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", n, Outcome(outcome)))
		}
	}
	if len(parts) == 0 {
		return "no narinfos found"
	}
	return strings.Join(parts, ", ")
}
