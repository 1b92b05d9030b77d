package history

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// The size of a plot, and the area of its lines.
const (
	plotWidth, plotHeight = 320, 120
	left, right           = 4, 316
	top, bottom           = 16, 100
)

// Plot is a picture of values over time, for a template.
type Plot struct {
	Title string
	// Summary has the newest, the mean and the largest value, as a text.
	Summary string
	// Area and Line are the paths of the first series, Second that of the second.
	Area, Line, Second string
	// Top is the label of the upper end of the scale, and Begin that of the oldest time.
	Top, Begin string
	// IsEmpty says that there is nothing to show.
	IsEmpty bool
}

// NewPlot makes a plot of one or two series, whose unknown values are NaN. scale returns the
// upper end of the scale for the largest value.
func NewPlot(title string, window time.Duration, scale func(float64) float64, format func(float64) string, series ...[]float64) Plot {
	p := Plot{Title: title, Begin: "−" + hours(window), IsEmpty: true}
	largest := 0.0
	for _, values := range series {
		for _, v := range values {
			if !math.IsNaN(v) {
				p.IsEmpty = false
				largest = max(largest, v)
			}
		}
	}
	if p.IsEmpty {
		p.Summary = "nothing yet"
		return p
	}
	most := scale(largest)
	p.Top = format(most)
	p.Line, p.Area = path(series[0], most)
	p.Summary = summary(series[0], format)
	if len(series) > 1 {
		p.Second, _ = path(series[1], most)
		p.Summary = "median (solid) " + p.Summary + "; 99th percentile (dashed) " + summary(series[1], format)
	}
	return p
}

// hours formats a window.
func hours(window time.Duration) string {
	if window < 2*time.Hour {
		return fmt.Sprintf("%d min", int(window.Minutes()))
	}
	return fmt.Sprintf("%d h", int(window.Round(time.Hour).Hours()))
}

// Nice returns the next larger number that begins with 1, 2 or 5.
func Nice(v float64) float64 {
	if v <= 0 {
		return 1
	}
	unit := math.Pow(10, math.Floor(math.Log10(v)))
	for _, factor := range []float64{1, 2, 5} {
		if v <= factor*unit {
			return factor * unit
		}
	}
	return 10 * unit
}

// NiceBytes is [Nice] in the largest unit of bytes that fits, such as KiB.
func NiceBytes(v float64) float64 {
	unit := 1.0
	for v/unit >= 1000 {
		unit *= 1024
	}
	return Nice(v/unit) * unit
}

// path returns the path of a line, with gaps for unknown values, and that of the area below it.
func path(values []float64, most float64) (line, area string) {
	var l, a strings.Builder
	step := float64(right-left) / float64(max(1, len(values)-1))
	x := func(i int) string { return coordinate(left + float64(i)*step) }
	for i := 0; i < len(values); i++ {
		if math.IsNaN(values[i]) {
			continue
		}
		begin := i
		for ; i < len(values) && !math.IsNaN(values[i]); i++ {
			y := coordinate(bottom - (bottom-top)*min(values[i]/most, 1))
			if i == begin {
				l.WriteString("M" + x(i) + " " + y)
				a.WriteString("M" + x(i) + " " + strconv.Itoa(bottom) + "L" + x(i) + " " + y)
			} else {
				l.WriteString("L" + x(i) + " " + y)
				a.WriteString("L" + x(i) + " " + y)
			}
		}
		if i == begin+1 {
			l.WriteString("h-3") // a dot
		}
		a.WriteString("L" + x(i-1) + " " + strconv.Itoa(bottom) + "Z")
	}
	return l.String(), a.String()
}

func coordinate(v float64) string { return strconv.FormatFloat(v, 'f', 1, 64) }

// summary describes values that are not all unknown.
func summary(values []float64, format func(float64) string) string {
	sum, count, largest, last := 0.0, 0, 0.0, math.NaN()
	for _, v := range values {
		if !math.IsNaN(v) {
			sum, count, largest, last = sum+v, count+1, max(largest, v), v
		}
	}
	if count == 0 {
		return "unknown"
	}
	return fmt.Sprintf("now %s, mean %s, at most %s", format(last), format(sum/float64(count)), format(largest))
}
