package signing

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"strings"
	"testing"

	"nar-herder/narinfo/signing/sexp"
)

// printed returns an s-expression in libgcrypt's printed form.
func printed(t testing.TB, text string) string {
	tree, err := sexp.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	return tree.Print()
}

// asUnusual is the same signature for [sexp.Parse], and not a usual one.
func asUnusual(sexp string) string { return " " + sexp }

// A usual signature, and any that differs from one in a byte, has the same verdict whether or
// not readUsual reads it.
func TestUsual(t *testing.T) {
	signer := newTestSigner(5)
	good := printed(t, signer.sign(signed))
	if err := check(signed, asUnusual(good)); err != nil { // decodes the key
		t.Fatal(err)
	}
	if _, ok := readUsual([]byte(asUnusual(good))); ok {
		t.Fatal("a signature that begins with space is usual")
	}
	keys, err := ParseKeys([]byte(strings.TrimSuffix(good[strings.Index(good, "(public-key"):], "\n )\n")))
	if err != nil {
		t.Fatal(err)
	}
	hash, usual := sha256.Sum256([]byte(signed)), 0
	compare := func(sexp string) {
		if _, ok := readUsual([]byte(sexp)); ok {
			usual++
		}
		for _, keys := range []*Keys{nil, keys} {
			got, want := Verify(fieldOf(sexp), hash, keys), Verify(fieldOf(asUnusual(sexp)), hash, keys)
			if fmt.Sprint(got) != fmt.Sprint(want) {
				t.Errorf("%q: got %v, want %v", sexp, got, want)
			}
		}
	}
	compare(good)
	if usual != 1 {
		t.Fatalf("%q isn't usual", good)
	}
	for i := range good {
		compare(good[:i])
		compare(good[:i] + good[i+1:])
		compare(good[:i] + good[i:i+1] + good[i:])
		for _, c := range []byte("0a#( ") {
			compare(good[:i] + string(c) + good[i+1:])
			compare(good[:i] + string(c) + good[i:])
		}
	}
	if usual < 200 {
		t.Errorf("only %d signatures were usual", usual)
	}
	order := fmt.Sprintf("%064X", curveOrder)
	for _, name := range []string{"hash sha256", "r", "s"} {
		old := element(good, name)
		digits := strings.Trim(strings.TrimPrefix(old, "("+name+" "), "#)")
		for _, number := range []string{"", "0", "00", strings.Repeat("0", 64), strings.Repeat("F", 64), order, order[2:], "00" + digits, "0000" + digits, digits[2:], digits + "00", strings.ToLower(digits)} {
			compare(strings.Replace(good, old, "("+name+" #"+number+"#)", 1))
		}
	}
	for _, end := range []string{"\x00", "\n", " ", "x", ")", " (x)"} {
		compare(good + end)
	}
	other := printed(t, newTestSigner(6).sign(signed))
	compare(good + good)
	compare(other) // its key isn't decoded yet
	compare(other)
}

// A usual signature of which the key wasn't decoded is read once by sexp.Parse.
func TestUsualKey(t *testing.T) {
	good := printed(t, newTestSigner(123).sign(signed))
	if _, ok := readUsual([]byte(good)); ok {
		t.Fatal("the key of a signer is known before its first signature")
	}
	if err := check(signed, good); err != nil {
		t.Fatal(err)
	}
	u, ok := readUsual([]byte(good))
	if hash := sha256.Sum256([]byte(signed)); !ok || u.hash != hash || !bytes.Contains([]byte(good), fmt.Appendf(nil, "(r #%X#)", sexp.TrimZeros(bigEndian(u.r)))) {
		t.Errorf("got %+v, %v of %s", u, ok, good)
	}
}
