package peer

import (
	"encoding/json"
	"fmt"
)

// Statement says on which other instances one relies for nars that it removes, directly or
// through others: how many steps away each is, 1 for those of its criteria. Under [Unknown]
// are those that an instance doesn't know, or doesn't say.
type Statement map[string]int

// Unknown is not the name of an instance.
const Unknown = "?"

const (
	// MaxStatement bounds the names in a statement, and with them the steps. maxName bounds
	// their length.
	MaxStatement = 256
	maxName      = 64
)

// UnmarshalJSON reads a statement and checks it.
func (s *Statement) UnmarshalJSON(text []byte) error {
	var read map[string]int
	if err := json.Unmarshal(text, &read); err != nil {
		return err
	}
	if len(read) > MaxStatement {
		return fmt.Errorf("%w: %d names in a statement, at most %d are allowed", ErrAnswer, len(read), MaxStatement)
	}
	for name, steps := range read {
		if name != Unknown && !isName(name) || steps < 1 || steps > MaxStatement {
			return fmt.Errorf("%w: a statement has %.99q, %d steps away", ErrAnswer, name, steps)
		}
	}
	*s = read
	return nil
}

func isName(name string) bool {
	for _, c := range []byte(name) {
		if (c < 'A' || c > 'Z') && (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' && c != '_' {
			return false
		}
	}
	return name != "" && len(name) <= maxName
}

// Introduction is what an instance says about itself.
type Introduction struct {
	// Instance is its name; "" for an original, which has none.
	Instance string
	// ReliesOn is its statement; nil where it makes none.
	ReliesOn Statement
}
