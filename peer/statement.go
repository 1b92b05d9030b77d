package peer

import (
	"encoding/json"
	"fmt"
)

// Statement lists the instances that one depends on for nars that it removes, directly or
// through others, with their distance: 1 for those in its removal criteria. [Unknown] is the
// name of unknown instances.
type Statement map[string]int

// Unknown is the name of unknown instances in a statement.
const Unknown = "?"

const (
	// MaxStatement bounds the names in a statement and their distances. maxName bounds the
	// length of a name.
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

// Introduction is how an instance introduces itself.
type Introduction struct {
	// Instance is its name; "" for an original, which has none.
	Instance string
	// ReliesOn is its statement; nil for none.
	ReliesOn Statement
}
