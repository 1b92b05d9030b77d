package main

import (
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"nar-herder/narinfo"
)

// TestGenerator checks the claims of the generator's documentation.
func TestGenerator(t *testing.T) {
	const count = generation + 5000 // into the second generation
	g, again := newGenerator(7), newGenerator(7)
	made := make(map[string]int) // when each item was made
	uses := make(map[string]int)
	var references, sizes []int
	var selves, systems int
	var key string
	names := make([]string, count)
	for i := range count {
		n := g.next(-1)
		if i < 1000 && string(n.text) != string(again.next(-1).text) {
			t.Fatal("the same seed gives other narinfos")
		}
		parsed, err := narinfo.Parse(n.text)
		if err != nil {
			t.Fatalf("%v\n%s", err, n.text)
		}
		if parsed.StorePath.BaseName() != n.base || parsed.StorePath.Hash.String() != n.hash {
			t.Fatalf("%s is not %s", parsed.StorePath, n.base)
		}
		k, err := parsed.SigningKey()
		if err != nil || key != "" && k != key {
			t.Fatalf("key %q, before %q: %v", k, key, err)
		}
		key = k
		if i < 100 {
			if err := parsed.CheckSignature(nil); err != nil {
				t.Fatal(err)
			}
		}
		if strings.Contains(string(n.text), "\nSystem: ") {
			systems++
		}
		made[n.base], names[i] = i, n.base[narinfo.PathHashLen+1:]
		list := strings.Fields(field(n.text, "References"))
		if !slices.IsSorted(list) || len(slices.Compact(slices.Clone(list))) != len(list) {
			t.Fatalf("references are not in order: %q", list)
		}
		for _, reference := range list {
			when, ok := made[reference]
			if !ok {
				t.Fatalf("%s refers to %s, which is not generated yet", n.base, reference)
			}
			if when == i {
				selves++
			}
			uses[reference]++
		}
		references, sizes = append(references, len(list)), append(sizes, len(n.text))
	}
	slices.Sort(references)
	slices.Sort(sizes)
	between := func(what string, got, least, most float64) {
		t.Helper()
		if got < least || got > most {
			t.Errorf("%s: %.3g, want %.3g to %.3g", what, got, least, most)
		}
	}
	between("median of references", float64(references[count/2]), 19, 21)
	between("most references", float64(references[count-1]), 100, 400)
	between("share of items that refer to themselves", float64(selves)/count, 0.66, 0.70)
	between("share of items with a system", float64(systems)/count, 0.96, 0.98)
	between("first decile of the size", float64(sizes[count/10]), 1000, 2000)
	between("median size", float64(sizes[count/2]), 1500, 2500)
	between("eighth decile of the size", float64(sizes[count*8/10]), 2000, 3<<10)
	between("most popular item's share of the generation", float64(slices.Max(slices.Collect(maps.Values(uses))))/generation, 0.4, 0.95)

	same := 0 // except for the output and the minor version
	for i := range count - generation {
		before, _, _ := strings.Cut(names[i], ".")
		if strings.HasPrefix(names[generation+i], before+".") {
			same++
		}
	}
	between("names that come again", float64(same)/(count-generation), 0.94, 0.99)
	if string(newGenerator(8).next(-1).text) == string(newGenerator(7).next(-1).text) {
		t.Error("two seeds give the same narinfos")
	}
	if n := newGenerator(1).next(1 << 30); field(n.text, "FileSize") != "1073741824" || field(n.text, "URL") != "nar/lzip/"+n.base {
		t.Errorf("wrong size:\n%s", n.text)
	}
}

func field(text []byte, name string) string {
	_, rest, _ := strings.Cut("\n"+string(text), "\n"+name+": ")
	value, _, _ := strings.Cut(rest, "\n")
	return value
}

func TestParseStat(t *testing.T) {
	const stat = "42 (a ) b) S 7 42 42 0 -1 4194560 1 2 3 4 150 50 9 9 20 0 1 0 100 0 0\n"
	if pid, parent, cpu, err := parseStat([]byte(stat)); err != nil || pid != 42 || parent != 7 || cpu != 2*time.Second {
		t.Error(pid, parent, cpu, err)
	}
	for _, bad := range []string{"", "42 nginx S 7", "42 (nginx) S 7", strings.Replace(stat, "150", "x", 1)} {
		if _, _, _, err := parseStat([]byte(bad)); err == nil {
			t.Errorf("no error for %q", bad)
		}
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
