package narinfo

import (
	"encoding/base64"
	"errors"
	"os"
	"strings"
	"testing"
)

// oneSpace makes printed forms of different libgcrypts comparable: older ones
// leave a space at the end of lines.
func oneSpace(s string) string { return strings.ReplaceAll(s, " \n", "\n") }

func TestSigningKey(t *testing.T) {
	for _, test := range []struct{ narinfo, key string }{
		{"production/bayfront-hello-2.12.2.narinfo", "production/bordeaux.guix.gnu.org.pub"},
		{"production/berlin-sed-4.4.narinfo", "production/ci.guix.gnu.org.pub"},
		{"cases/ok-ed25519.narinfo", "cases/keys/main.pub"},
		{"cases/ok-rsa.narinfo", "cases/keys/rsa.pub"},
		{"cases/bad-unauthorized-key.narinfo", "cases/keys/other.pub"},
		{"cases/bad-tampered-narhash.narinfo", "cases/keys/main.pub"}, // read, not verified
	} {
		text, err := os.ReadFile("../testdata/" + test.narinfo)
		if err != nil {
			t.Fatal(err)
		}
		key, err := os.ReadFile("../testdata/" + test.key)
		if err != nil {
			t.Fatal(err)
		}
		got, err := mustParse(t, text).SigningKey()
		if err != nil || got != oneSpace(string(key)) {
			t.Errorf("%s: got %q, %v, want %q", test.narinfo, got, err, oneSpace(string(key)))
		}
	}
}

// A key that libgcrypt prints as a quoted string stays as it was printed.
func TestSigningKeyQuoted(t *testing.T) {
	text, err := os.ReadFile("testdata/signatures/quoted-q.narinfo")
	if err != nil {
		t.Fatal(err)
	}
	const want = "(public-key\n (ecc\n  (curve Ed25519)\n  (q \"#9ÁÏó59ê\\v{|FØ6¥¸A²>%²^lDô=A?\\vÍÙ_\")\n  )\n )\n"
	if got, err := mustParse(t, text).SigningKey(); err != nil || got != want {
		t.Errorf("got %q, %v, want %q", got, err, want)
	}
}

func TestSigningKeyErrors(t *testing.T) {
	for _, test := range []struct{ narinfo, want string }{
		{"bad-version-2", `version "2"`},
		{"bad-base64", "must be base64"},
		{"bad-sexp", "cut off"},
	} {
		text, err := os.ReadFile("../testdata/cases/" + test.narinfo + ".narinfo")
		if err != nil {
			t.Fatal(err)
		}
		key, err := mustParse(t, text).SigningKey()
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: got %q, %v, want %q in the error", test.narinfo, key, err, test.want)
		}
	}
	unsigned, err := os.ReadFile("../testdata/cases/bad-unsigned.narinfo")
	if err != nil {
		t.Fatal(err)
	}
	n := mustParse(t, unsigned)
	if key, err := n.SigningKey(); !errors.Is(err, ErrUnsigned) {
		t.Errorf("unsigned: got %q, %v", key, err)
	}
	if n.Signed() != nil || n.Signature() != "" {
		t.Errorf("unsigned: Signed() = %q, Signature() = %q", n.Signed(), n.Signature())
	}
}

func TestSigningKeyForms(t *testing.T) {
	const key = "(public-key\n (ecc\n  (curve Ed25519)\n  (q #AB01#)\n  )\n )\n"
	for _, test := range []struct{ text, want string }{
		{"(signature (data x) (public-key (ecc (curve Ed25519) (q #ab 01#))))", key},
		{"(signature(public-key(ecc(curve Ed25519)(q#AB01#))))\x00", key},
		{"(signature (public-key (ecc (curve \"NIST P-256\") (flags eddsa x) (q #00#))))",
			"(public-key\n (ecc\n  (curve \"NIST P-256\")\n  (flags eddsa x)\n  (q #00#)\n  )\n )\n"},
		{`(signature (public-key (ecc (q "\n) \" \\ä"))))`, "(public-key\n (ecc\n  (q \"\\n) \\\" \\\\ä\")\n  )\n )\n"},
	} {
		got, err := signingKey("1;host;" + base64.StdEncoding.EncodeToString([]byte(test.text)))
		if err != nil || got != test.want {
			t.Errorf("%q: got %q, %v, want %q", test.text, got, err, test.want)
		}
	}
	for _, text := range []string{
		"",
		"signature",
		"()",
		"(signature)",
		"(signature (public-key))",
		"(signature (public-key ecc))",
		"(signature (public-key (ecc)))",
		"(signature (public-key (ecc (q))))",
		"(signature (public-key (ecc (q (x)))))",
		"(signature (public-key (ecc q)))",
		"(signature (public-key ((ecc) (q #00#))))",
		"(signature (public-key (ecc (q #00#)) (ecc (q #00#))))",
		"(signature (public-key (ecc (q #0x#))))",
		"(signature (public-key (ecc (q \"\n\"))))",
		"(signature (public-key (ecc (q \"\\z\"))))",
		"(signature (public-key (ecc (q \"\\\"))))",
		"(signature (public-key (ecc (q \"\\x0\"))))",
		"(signature (public-key (ecc (q \"\xe4\"))))",   // isn't UTF-8
		"(signature (public-key (ecc (q \"\u0100\"))))", // stands for no byte
		"(signature (public-key (ecc\x00(q #00#))))",
		"(signature (public-key (ecc (q #00))))",
		"(signature (public-key (ecc (q 3:abc)))) trailing",
		"(sig-val (public-key (ecc (q #00#))))",
		"(signature (public-key (ecc (q |AAAA|))))",
		strings.Repeat("(", 100000),
		strings.Repeat("(a ", maxSexpDepth+1) + strings.Repeat(")", maxSexpDepth+1),
	} {
		if got, err := signingKey("1;host;" + base64.StdEncoding.EncodeToString([]byte(text))); err == nil {
			t.Errorf("%.80q: got %q, want an error", text, got)
		}
	}
	for _, signature := range []string{"", "1", "1;host", "1;host;;", ";;", "1;a;b;c"} {
		if got, err := signingKey(signature); err == nil {
			t.Errorf("%q: got %q, want an error", signature, got)
		}
	}
}
