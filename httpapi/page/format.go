package page

import (
	"fmt"
	"html/template"
	"reflect"
	"strconv"
	"strings"
	"time"
)

// functions are those of all templates.
var functions = template.FuncMap{
	"bytes": func(n any) string { return Bytes(integer(n)) }, "count": func(n any) string { return Count(integer(n)) },
	"plural":   func(n any, noun string) string { return Plural(integer(n), noun) },
	"duration": Duration, "percent": Percent, "time": Time,
	"join": strings.Join, "hasPrefix": strings.HasPrefix,
}

// integer returns the value of an integer of any type, as templates don't convert them.
func integer(n any) int64 {
	value := reflect.ValueOf(n)
	if value.CanUint() {
		return int64(value.Uint())
	}
	return value.Int()
}

// Bytes formats a size, such as 7.0 MiB.
func Bytes(n int64) string {
	if n < 1024 {
		return fmt.Sprintf("%d B", n)
	}
	value, unit := float64(n)/1024, 0
	for value >= 999.95 && unit < len("KMGTPE")-1 {
		value /= 1024
		unit++
	}
	return fmt.Sprintf("%.1f %ciB", value, "KMGTPE"[unit])
}

// Count formats a number with commas between groups of three digits.
func Count(n int64) string {
	digits := strconv.FormatInt(n, 10)
	for i := len(digits) - 3; i > 0 && digits[i-1] != '-'; i -= 3 {
		digits = digits[:i] + "," + digits[i:]
	}
	return digits
}

// Plural formats a number with a noun, such as 2 items.
func Plural(n int64, noun string) string {
	if n != 1 {
		noun += "s"
	}
	return Count(n) + " " + noun
}

// Duration formats a duration by its largest unit, or two of them if that is small.
func Duration(d time.Duration) string {
	switch {
	case d < time.Millisecond:
		return fmt.Sprintf("%d µs", d.Microseconds())
	case d < time.Second:
		return fmt.Sprintf("%d ms", d.Milliseconds())
	case d < 10*time.Second:
		return fmt.Sprintf("%.1f s", d.Seconds())
	case d < 2*time.Minute:
		return fmt.Sprintf("%d s", int(d.Seconds()))
	case d < 2*time.Hour:
		return fmt.Sprintf("%d min", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%d h", int(d.Hours()))
	}
	return fmt.Sprintf("%d days", int(d.Hours()/24))
}

// Percent formats a part of a whole.
func Percent(part, whole float64) string {
	if whole <= 0 {
		return "–"
	}
	share := 100 * part / whole
	if 0 < share && share < 9.95 {
		return fmt.Sprintf("%.1f %%", share)
	}
	return fmt.Sprintf("%.0f %%", share)
}

// Time formats a time for people, in UTC.
func Time(t time.Time) string { return t.UTC().Format("2006-01-02 15:04 UTC") }
