package export

import (
	"errors"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"nar-herder/storage/index"
)

// TestLoss refuses to remove more than a tenth of the narinfos or nars, and then changes
// nothing.
func TestLoss(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	items := many(20)
	p.add(t, items...)
	p.exports(t, Summary{Added: 20}, nil)
	strictly := func(e *Export) { e.Delete, e.AcceptLoss = true, false }
	refused := func(when string, change func(*Export), wanted string) {
		t.Helper()
		before := files(t, p.out)
		if _, _, err := p.export(func(e *Export) { strictly(e); change(e) }); !errors.Is(err, ErrLoss) || !strings.Contains(err.Error(), wanted) {
			t.Errorf("%s: %v", when, err)
		}
		if !maps.Equal(before, files(t, p.out)) {
			t.Errorf("%s: the copy has changed", when)
		}
	}
	nothing := func(*Export) {}
	refused("a tag that no item has", func(e *Export) { e.Tags = []index.Tag{{Key: "typo", Value: "x"}} }, "no selected item")
	p.remove(t, items[0])
	p.remove(t, items[1])
	p.exports(t, Summary{Unchanged: 18, StaleNarinfos: 2, StaleNars: 2}, strictly)
	p.remove(t, items[2])
	p.remove(t, items[3])
	p.add(t, fake{n: 100, content: "new"})
	refused("two of 18", nothing, "2 of 18 narinfos and 2 of 18 nars")

	// A dry run reports the loss.
	summary, _, err := p.export(func(e *Export) { strictly(e); e.DryRun = true })
	if !errors.Is(err, ErrLoss) || summary.StaleNarinfos != 2 || summary.Added != 1 {
		t.Errorf("a dry run: %+v, %v", summary, err)
	}
	p.exports(t, Summary{Added: 1, Unchanged: 16, StaleNarinfos: 2, StaleNars: 2}, func(e *Export) { e.Delete = true })
	p.exports(t, Summary{Unchanged: 17}, strictly)

	// Only nars, as in another program's directory of nars.
	for n := range 3 {
		write(t, filepath.Join(p.out, fake{n: 200 + n}.nar()), "x")
	}
	refused("nars", nothing, "0 of 17 narinfos and 3 of 20 nars")
}

// TestAdopt refuses directories with files that no export has made.
func TestAdopt(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		file    string
		allowed bool
	}{
		"index.html": {"index.html", false}, "narinfo": {many(1)[0].file(), false}, "nars": {"nar/lzip/" + many(1)[0].path().BaseName(), false},
		"new file system": {"lost+found/x", true}, "killed at once": {temporaryDirectory + "/1", true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPlace(t)
			p.add(t, many(2)...)
			write(t, filepath.Join(p.out, test.file), "x")
			for _, dry := range []bool{true, false} {
				_, _, err := p.export(func(e *Export) { e.Adopt, e.DryRun = false, dry })
				if (err == nil) != test.allowed || err != nil && !strings.Contains(err.Error(), "--adopt") {
					t.Errorf("dry %v: %v", dry, err)
				}
			}
			if _, err := os.Stat(filepath.Join(p.out, markerName)); (err == nil) != test.allowed {
				t.Errorf("the marker: %v", err)
			}
			if _, _, err := p.export(nil); err != nil { // adopts it
				t.Fatal(err)
			}
			if _, _, err := p.export(func(e *Export) { e.Adopt = false }); err != nil {
				t.Errorf("afterwards: %v", err)
			}
		})
	}
}
