package original

import (
	"database/sql/driver"
	"math"
	"strconv"
	"strings"
	"time"
)

// timeLayouts are the formats of times, apart from numbers. A fraction may follow the
// seconds: package time accepts it without a layout.
var timeLayouts = []string{
	timeLayout, "2006-01-02T15:04:05",
	"2006-01-02 15:04:05Z07:00", "2006-01-02T15:04:05Z07:00", "2006-01-02 15:04:05 Z07:00",
	"2006-01-02 15:04:05-0700", "2006-01-02T15:04:05-0700", "2006-01-02 15:04:05 -0700",
	"2006-01-02 15:04", "2006-01-02T15:04", "2006-01-02",
}

// parseTime reads a time in whole seconds, UTC if it has no zone. It may be a number of
// seconds since 1970, or of milliseconds if it is large.
func parseTime(s string) (time.Time, bool) {
	s = strings.TrimSpace(s)
	t, ok := parseNumber(s)
	for i := 0; !ok && i < len(timeLayouts); i++ {
		parsed, err := time.Parse(timeLayouts[i], s)
		t, ok = parsed, err == nil
	}
	t = t.UTC().Truncate(time.Second)
	// Other years can't be written in timeLayout.
	if !ok || t.Year() < 1 || t.Year() > 9999 || t.IsZero() {
		return time.Time{}, false
	}
	return t, true
}

func parseNumber(s string) (time.Time, bool) {
	const (
		milliseconds = 1e11 // as seconds, that is the year 5138
		most         = 1e15
	)
	n, err := strconv.ParseFloat(s, 64)
	if err != nil || math.IsNaN(n) || math.Abs(n) > most {
		return time.Time{}, false
	}
	if math.Abs(n) >= milliseconds {
		n /= 1000
	}
	return time.Unix(int64(math.Floor(n)), 0), true
}

// timeColumn reads a column that shortText has selected.
func timeColumn(value driver.Value) (time.Time, bool) {
	s, ok := value.(string)
	if !ok {
		return time.Time{}, false
	}
	return parseTime(s)
}
