package httpapi

import (
	"strings"
	"testing"
)

// TestKnownPath requests nars of an item in memory, by the paths of its narinfo and by others.
func TestKnownPath(t *testing.T) {
	t.Parallel()
	o := options()
	o.AnswerCache = 64 << 20
	s := start(t, corpus(), o)
	c := dial(t, s.address)
	content := contents(t, published, "nar", "lzip", odd)
	kept := false // a file is closed soon afterwards
	for range 2 {
		for target, status := range map[string]int{
			"/nar/lzip/" + oddURL:                              200,
			"/nar/lzip/" + strings.ReplaceAll(odd, "?", "%3f"): 200,
			"/nar/lzip/" + oddURL + "?query":                   200,
			"/nar/lzip/" + oddURL + "x":                        404,
			"/nar/gzip/" + oddURL:                              404,
			"/nar/x/lzip/" + oddURL:                            404,
			"/nar/lzip/" + oddURL[:20]:                         404,
			"/nar/lzip/":                                       404,
			"/nar/":                                            404,
		} {
			got := c.ask("GET", target)
			if got.StatusCode != status || status == 200 && got.body != content {
				t.Errorf("%s: %s, %d bytes", target, got.Status, len(got.body))
			}
			kept = kept || s.sender.Kept() > 0
		}
	}
	if !kept {
		t.Error("no file is kept open")
	}
}
