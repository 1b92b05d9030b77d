package sexp

import (
	"strings"
	"testing"
)

func TestDepth(t *testing.T) {
	for depth, want := range map[int]error{1: nil, maxDepth: nil, maxDepth + 1: errDepth, 100_000: errDepth} {
		if _, err := Parse(strings.Repeat("(a ", depth) + strings.Repeat(")", depth)); err != want {
			t.Errorf("%d levels: %v, want %v", depth, err, want)
		}
	}
}

// FuzzParse: an s-expression survives printing and parsing.
func FuzzParse(f *testing.F) {
	for _, seed := range []string{
		"(public-key (ecc (curve Ed25519) (q #00FF#)))", `(a "b\n\x41\101" |YQ==|)`, "(a (b (c ())))", "(3:abc)", "()", "(", ")", "(a))", "(a #0#)",
		strings.Repeat("(a ", 100) + strings.Repeat(")", 100), `(a "\`, "(a \x00)", " (a) ",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		tree, err := Parse(text)
		if err != nil {
			return
		}
		printed := tree.Print()
		again, err := Parse(printed)
		if err != nil {
			t.Fatalf("%q is printed as %q: %v", text, printed, err)
		}
		if second := again.Print(); second != printed {
			t.Fatalf("%q is printed as %q, and that as %q", text, printed, second)
		}
	})
}
