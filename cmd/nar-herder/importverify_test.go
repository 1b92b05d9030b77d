package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestImportWrongNar: a nar with one flipped byte is refused, wherever it was found, and
// nothing of it is served.
func TestImportWrongNar(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		options []string
		inPlace bool // the nars are in the storage already
	}{
		"moved":                  {},
		"copied":                 {options: []string{"--keep"}},
		"already in the storage": {inPlace: true},
		"with references":        {options: []string{"--ensure-references-exist", "--keep"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPlace(t)
			s := p.serve(t)
			source := copyCorpus(t, "published")
			wrong := filepath.Join(source, "nar/lzip", entropy)
			if test.inPlace {
				if err := os.Rename(filepath.Join(source, "nar"), filepath.Join(p.storage, "nar")); err != nil {
					t.Fatal(err)
				}
				wrong = filepath.Join(p.storage, "nar/lzip", entropy)
			}
			if err := flip(wrong); err != nil {
				t.Fatal(err)
			}
			content := read(t, wrong)
			r := runProgram(t, p.args("import", append(test.options, source)...)...)
			if r.status != 1 || !strings.HasPrefix(r.out, "1 failed, 12 added") || strings.Count(r.err, "\n") != 1 || !strings.Contains(r.err, entropy) || !strings.Contains(r.err, "not the nar that the narinfo describes") {
				t.Errorf("status %d, %s, %s", r.status, r.out, r.err)
			}
			if read(t, wrong) != content {
				t.Error("the wrong nar was changed or removed")
			}
			for _, path := range []string{"/" + narinfoName(entropy), "/nar/lzip/" + entropy, "/nar/" + entropy} {
				if got := get(t, s.addresses[0], path); got.StatusCode != 404 {
					t.Errorf("%s: %s", path, got.Status)
				}
			}
			if c := p.check(t, "--verify"); c.totals.Findings["corrupt"] != 0 || c.totals.VerifiedFiles != 12 {
				t.Errorf("check: %+v", c.totals)
			}
		})
	}
}
