package main

import (
	"slices"
	"testing"

	"nar-herder/narinfo"
)

func TestGenerator(t *testing.T) {
	a, b := newGenerator(7), newGenerator(7)
	var references []int
	var total int
	const count = 3000
	for range count {
		n, again := a.next(-1), b.next(-1)
		if string(n.text) != string(again.text) {
			t.Fatal("the same seed gives other narinfos")
		}
		parsed, err := narinfo.Parse(n.text)
		if err != nil {
			t.Fatalf("%v\n%s", err, n.text)
		}
		if parsed.StorePath.BaseName() != n.base || parsed.StorePath.Hash.String() != n.hash {
			t.Fatalf("%s is not %s", parsed.StorePath, n.base)
		}
		references = append(references, len(parsed.References))
		total += len(n.text)
	}
	slices.Sort(references)
	if middle := references[count/2]; middle < 17 || middle > 22 {
		t.Errorf("median of %d references, want about 20", middle)
	}
	if mean := total / count; mean < 1000 || mean > 3000 {
		t.Errorf("texts of %d bytes, want 1 to 3 KB", mean)
	}
}

func TestParseWrk(t *testing.T) {
	requests, microseconds, faults, err := parseWrk([]byte("Running 5s test\nresult 1000 5000000 0 1 0 2 0\n"))
	if err != nil || requests != 1000 || microseconds != 5_000_000 || faults != 3 {
		t.Error(requests, microseconds, faults, err)
	}
	if _, _, _, err := parseWrk([]byte("unable to connect\n")); err == nil {
		t.Error("no result, and no error")
	}
}

func TestBars(t *testing.T) {
	b := new(bench)
	b.add("rate", "", []float64{10, 20, 30}, []float64{10, 10, 10}, 2.5, false)
	b.add("cpu", "", []float64{1}, []float64{2}, 1, true)
	if !b.rows[0].missed || b.rows[1].missed {
		t.Errorf("%+v", b.rows)
	}
}
