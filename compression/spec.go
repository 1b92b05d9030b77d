package compression

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"nar-herder/compression/lzip"
)

// Spec is a compression with its level, as in --enable-cached-compression=TYPE[:LEVEL].
type Spec struct {
	Name  string // Zstd, Lzip or Gzip
	Level int    // of the codec's own program
}

// String returns the form that ParseSpec reads, with the level.
func (s Spec) String() string { return s.Name + ":" + strconv.Itoa(s.Level) }

// levelRange is the range of levels of a codec's program, and its default.
type levelRange struct{ min, max, standard int }

// levelRanges are from the programs' manuals. zstd calls levels from 20 on ultra.
var levelRanges = map[string]levelRange{
	Zstd: {1, 22, 3},
	Gzip: {1, 9, 6},
	Lzip: {lzip.MinLevel, lzip.MaxLevel, lzip.DefaultLevel},
}

// ErrLevel is the error for a level that a compression does not have.
type ErrLevel struct {
	Name     string
	Level    string // as given
	Min, Max int
}

func (e ErrLevel) Error() string {
	return fmt.Sprintf("%s has no level %q, only %d to %d", e.Name, e.Level, e.Min, e.Max)
}

// ParseSpec parses TYPE or TYPE:LEVEL. TYPE is zstd, lzip or gzip, and LEVEL a level of the program of that name: 1 to 22
// for zstd, 0 to 9 for lzip, 1 to 9 for gzip. The default is the program's. The error is an ErrUnknown or an ErrLevel.
func ParseSpec(s string) (Spec, error) {
	name, level, given := strings.Cut(s, ":")
	r, ok := levelRanges[name]
	if !ok {
		return Spec{}, ErrUnknown{Name: name, Allowed: []string{Zstd, Lzip, Gzip}}
	}
	if !given {
		return Spec{name, r.standard}, nil
	}
	n, err := strconv.ParseUint(level, 10, 8) // no sign
	if err != nil || int(n) < r.min || int(n) > r.max {
		return Spec{}, ErrLevel{name, level, r.min, r.max}
	}
	return Spec{name, int(n)}, nil
}

// DefaultLevel returns the default level of the codec's program: 3 for zstd, 6 for gzip and lzip; 0 for compressions
// without levels.
func DefaultLevel(name string) int { return levelRanges[name].standard }

// checkLevel returns an error if a compression can't be written at a level.
func checkLevel(name string, level int) error {
	if !slices.Contains(writable, name) {
		return ErrUnknown{Name: name, Allowed: slices.Clone(writable)}
	}
	if r, ok := levelRanges[name]; ok && (level < r.min || level > r.max) {
		return ErrLevel{name, strconv.Itoa(level), r.min, r.max}
	}
	return nil
}
