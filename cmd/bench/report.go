package main

import (
	"fmt"
	"io"
	"slices"
)

// row is a line of the report.
type row struct {
	name   string
	ours   string
	theirs string
	ratio  string
	bar    string
	missed bool
}

// add adds a row for two series of measurements, with a bar for the median of their ratios: a
// lower bound, or an upper one with atMost. Zero means no bar.
func (b *bench) add(name, unit string, ours, theirs []float64, bar float64, atMost bool) {
	ratios := make([]float64, len(ours))
	for i := range ours {
		ratios[i] = ours[i] / theirs[i]
	}
	r := row{
		name: name, ours: spread(ours, unit), theirs: spread(theirs, unit), ratio: spread(ratios, ""),
	}
	r.setBar(median(ratios), bar, atMost, "×")
	b.rows = append(b.rows, r)
}

// addFigure adds a row for a figure of nar-herder alone.
func (b *bench) addFigure(name, unit string, figure, bar float64, atMost bool) {
	r := row{name: name, ours: fmt.Sprintf("%.4g %s", figure, unit)}
	r.setBar(figure, bar, atMost, " "+unit)
	b.rows = append(b.rows, r)
}

func (r *row) setBar(figure, bar float64, atMost bool, unit string) {
	if bar == 0 {
		return
	}
	sign := "≥"
	r.missed = figure < bar
	if atMost {
		sign = "≤"
		r.missed = figure > bar
	}
	r.bar = fmt.Sprintf("%s %.6g%s", sign, bar, unit)
	if r.missed {
		r.bar += " MISSED"
	}
}

func median(figures []float64) float64 {
	sorted := slices.Sorted(slices.Values(figures))
	middle := len(sorted) / 2
	if len(sorted)%2 == 0 {
		return (sorted[middle-1] + sorted[middle]) / 2
	}
	return sorted[middle]
}

func spread(figures []float64, unit string) string {
	return fmt.Sprintf("%.3g %s(%.3g to %.3g)", median(figures), unit, slices.Min(figures), slices.Max(figures))
}

// print writes the report, and returns the number of missed bars.
func (b *bench) print(w io.Writer) (missed int) {
	fmt.Fprintln(w, "| | nar-herder | nginx, or the program named | ratio | bar |\n|---|---|---|---|---|")
	for _, r := range b.rows {
		fmt.Fprintf(w, "| %s | %s | %s | %s | %s |\n", r.name, r.ours, r.theirs, r.ratio, r.bar)
		if r.missed {
			missed++
		}
	}
	return missed
}
