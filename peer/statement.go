package peer

import (
	"encoding/json"
	"fmt"
)

// Statement says on which other instances each instance relies for nars that it removes:
// those of its criteria. An instance without an entry may rely on any.
type Statement map[string]Reliance

// Reliance is the entry of one instance.
type Reliance struct {
	On []string `json:"on"`
	// Age is how long ago the instance said so, in milliseconds.
	Age int64 `json:"age_ms"`
}

const (
	// MaxStatement bounds the names in a statement, and maxName their length.
	MaxStatement = 256
	maxName      = 64
	// maxStatementHeader bounds a statement in a header: proxies refuse long ones.
	maxStatementHeader = 2 << 10
)

// Names is how many names are in the statement.
func (s Statement) Names() (count int) {
	for _, entry := range s {
		count += 1 + len(entry.On)
	}
	return count
}

// UnmarshalJSON reads a statement and checks it.
func (s *Statement) UnmarshalJSON(text []byte) error {
	var read map[string]Reliance
	if err := json.Unmarshal(text, &read); err != nil {
		return err
	}
	if count := Statement(read).Names(); count > MaxStatement {
		return fmt.Errorf("%w: %d names in a statement, at most %d are allowed", ErrAnswer, count, MaxStatement)
	}
	for name, entry := range read {
		if entry.On == nil || entry.Age < 0 {
			return fmt.Errorf("%w: the entry of instance %.99q in a statement is not complete, or has a negative age", ErrAnswer, name)
		}
		for _, name := range append(entry.On, name) {
			if !isName(name) {
				return fmt.Errorf("%w: %.99q in a statement is not the name of an instance", ErrAnswer, name)
			}
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

// Header is the statement as the value of [ReliesOnHeader]; "" where it is too long.
func (s Statement) Header() string {
	text, err := json.Marshal(s)
	if err != nil || len(s) == 0 || len(text) > maxStatementHeader {
		return ""
	}
	return string(text)
}

// Introduction is what an instance says about itself.
type Introduction struct {
	// Instance is its name; "" for an original, which has none.
	Instance string
	// Storage is the name of its storage; "" without one.
	Storage string
	// ReliesOn is its statement; nil where it makes none.
	ReliesOn Statement
}
