package signing

import (
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"testing"
)

// signed is a text that tests sign.
const signed = "StorePath: /gnu/store/hbdalsf5lpf01x4dcknwx6xbn6n5km6k-hello-2.10\n"

// field returns the value of the field Signature with an s-expression.
func fieldOf(sexp string) string {
	return "1;host;" + base64.StdEncoding.EncodeToString([]byte(sexp))
}

// check verifies the s-expression of a text's signature.
func check(text, sexp string) error { return Verify(fieldOf(sexp), sha256.Sum256([]byte(text)), nil) }

// checkVerdict asserts that an error is want, none of the others, and has the message.
func checkVerdict(t *testing.T, got, want error, message string) {
	t.Helper()
	if want == nil && got == nil {
		return
	}
	for _, verdict := range []error{ErrBadSignature, ErrCorrupt, ErrHashMismatch, ErrInvalid, ErrUnknownAlgorithm, ErrUnauthorized} {
		// Tests may leave open which of the bad ones it is.
		if errors.Is(got, verdict) != errors.Is(want, verdict) && (want != ErrBadSignature || verdict == ErrUnknownAlgorithm) {
			t.Errorf("got %v, want %v", got, want)
			return
		}
	}
	if want == nil || !strings.Contains(got.Error(), message) || strings.Contains(got.Error(), "\n") {
		t.Errorf("got %v, want one line with %q", got, message)
	}
}

// hashOf returns the s-expression for the hash of a text.
func hashOf(text string) string {
	return fmt.Sprintf("(hash sha256 #%X#)", sha256.Sum256([]byte(text)))
}

// element returns (name VALUE) of an s-expression.
func element(sexp, name string) string {
	_, rest, _ := strings.Cut(sexp, "("+name+" ")
	value, _, _ := strings.Cut(rest, ")")
	return "(" + name + " " + value + ")"
}

func TestVerifyForms(t *testing.T) {
	good := newTestSigner(1).sign(signed)
	if err := check(signed, good); err != nil {
		t.Fatal(err)
	}
	hash := hashOf(signed)
	digest := strings.TrimSuffix(strings.TrimPrefix(hash, "(hash sha256 "), ")")
	for _, test := range []struct {
		name, old, new string
		err            error
		message        string
	}{
		{"lower case", digest, strings.ToLower(digest), nil, ""},
		{"space in digits", digest, digest[:9] + " \n" + digest[9:], nil, ""},
		{"odd number of digits", digest, "#" + digest[2:], ErrBadSignature, "pairs"},
		{"hash cut", digest, "#" + digest[3:], ErrBadSignature, "sha256 of the text"},
		{"empty hash", digest, "##", ErrBadSignature, "sha256 of the text"},
		{"hash a list", digest, "(" + digest + ")", ErrBadSignature, "list"},
		{"hash of two values", digest, digest + digest, ErrBadSignature, "(hash ALGORITHM VALUE)"},
		{"no hash", hash, "", ErrBadSignature, "no hash"},
		{"two hashes", hash, hash + hash, ErrBadSignature, "more than one hash"},
		{"other hash first", hash, "(hash sha256 #00#)" + hash, ErrBadSignature, "more than one hash"},
		{"hash algorithm", "sha256", "blake2b-256", ErrUnknownAlgorithm, "blake2b-256"},
		{"hash algorithm and other hash", hash, "(hash sha512 #00#)", ErrBadSignature, "sha256 of the text"},
		{"hash algorithm a list", "sha256", "(sha256)", ErrUnknownAlgorithm, `""`},
		{"no data", "(data", "(date", ErrBadSignature, "no data"},
		{"no flags", "(flags rfc6979)", "", ErrBadSignature, "no flags"},
		{"empty flags", "(flags rfc6979)", "(flags)", ErrUnknownAlgorithm, `flag ""`},
		{"more flags", "(flags rfc6979)", "(flags rfc6979 param)", ErrUnknownAlgorithm, `flag ""`},
		{"flag", "rfc6979", "eddsa", ErrUnknownAlgorithm, "eddsa"},
		{"flag of RSA", "rfc6979", "pkcs1", ErrUnknownAlgorithm, "pkcs1"},
		{"no sig-val", "sig-val", "sig-wal", ErrBadSignature, "no sig-val"},
		{"empty sig-val", "(sig-val (ecdsa", "(sig-val) (x (ecdsa", ErrBadSignature, "sig-val must be"},
		{"sig-val without algorithm", "(sig-val (ecdsa", "(sig-val ((ecdsa)", ErrBadSignature, "sig-val must be"},
		{"algorithm", "ecdsa", "eddsa", ErrUnknownAlgorithm, "eddsa"},
		{"other algorithm", "ecdsa", "rsa", ErrUnknownAlgorithm, "rsa"},
		{"algorithm of key", "ecc", "dsa", ErrUnknownAlgorithm, "dsa"},
		{"curve", "Ed25519", "\"NIST P-256\"", ErrUnknownAlgorithm, "NIST P-256"},
		{"curve of two", "Ed25519", "Ed25519 Ed25519", ErrBadSignature, "curve must have one"},
		{"no curve", "(curve Ed25519)", "", ErrBadSignature, "no curve"},
		{"flags of key", "(curve", "(flags eddsa) (curve", ErrUnknownAlgorithm, "flags"},
		{"no key", "public-key", "private-key", ErrBadSignature, "no public-key"},
		{"key's form", "(curve Ed25519)", "(curve)", ErrBadSignature, "public-key must be"},
		{"two keys", "(public-key", "(public-key (ecc (q #00#))) (public-key", ErrBadSignature, "more than one public-key"},
		{"no q", element(good, "q"), "", ErrBadSignature, "no q"},
		{"q by another name", "(q ", "(Q ", ErrUnknownAlgorithm, `has "Q" in it`},
		{"two q", "(q ", "(q #00#) (q ", ErrBadSignature, "more than one q"},
		{"q of 33 bytes", "(q #", "(q #40", ErrBadSignature, "must be a point"},
		{"no r", element(good, "r"), "", ErrBadSignature, "no r"},
		{"r by another name", "(r ", "(R ", ErrUnknownAlgorithm, `has "R" in it`},
		{"no s", element(good, "s"), "", ErrBadSignature, "no s"},
		{"s by another name", "(s ", "(S ", ErrUnknownAlgorithm, `has "S" in it`},
		{"two r", "(r ", "(r #01#) (r ", ErrBadSignature, "more than one r"},
		{"two s", "(s ", "(s #01#) (s ", ErrBadSignature, "more than one s"},
		{"zero before r", "(r #", "(r #0000", nil, ""},
		{"zero before s", "(s #", "(s #00", nil, ""},
		{"long r", "(r #", "(r #01" + strings.Repeat("00", 20000), ErrBadSignature, "r is"},
		{"long q", "(q #", "(q #" + strings.Repeat("00", 20000), ErrBadSignature, "q is"},
		{"long hash", digest, "#" + strings.Repeat("00", 20000) + "#", ErrBadSignature, "sha256 of the text"},
		{"long algorithm", "ecdsa", strings.Repeat("e", 40000), ErrUnknownAlgorithm, "eee"},
		{"many values", "(r ", "(r " + strings.Repeat("a ", 20000), ErrBadSignature, "r must have one"},
		{"many lists", "(data", strings.Repeat("(a)", 12000) + "(data", ErrUnknownAlgorithm, `has "a" in it`},
		{"atom more", "(data", "x (data", ErrUnknownAlgorithm, `has "x" in it`},
		{"atom more in data", "(data", "(data x", ErrUnknownAlgorithm, `has "x" in it`},
		{"many data", "(data", strings.Repeat("(data)", 6000) + "(data", ErrBadSignature, "more than one data"},
		{"deep", "(data", strings.Repeat("(", 40000), ErrBadSignature, "levels"},
		{"unended quote", "(data", "(\"" + strings.Repeat("\\\"", 20000), ErrBadSignature, "cut off"},
		{"more after it", "#))))", "#)))))", ErrBadSignature, "after"},
		{"NUL in it", "(data", "\x00(data", ErrBadSignature, "isn't a token"},
	} {
		t.Run(test.name, func(t *testing.T) {
			changed := strings.Replace(good, test.old, test.new, 1)
			if changed == good {
				t.Fatal("nothing was changed")
			}
			checkVerdict(t, check(signed, changed), test.err, test.message)
		})
	}
}

// The last character of base64 has unused bits, which must be 0.
func TestVerifyBase64(t *testing.T) {
	sexp := newTestSigner(1).sign(signed)
	sexp += strings.Repeat("\n", 3-(len(sexp)+2)%3) // one byte in the last four characters
	signature, hash := fieldOf(sexp), sha256.Sum256([]byte(signed))
	if err := Verify(signature, hash, nil); err != nil {
		t.Fatal(err)
	}
	start, ends := strings.CutSuffix(signature, "Cg==")
	if !ends {
		t.Fatalf("%s doesn't end in Cg==", signature)
	}
	checkVerdict(t, Verify(start+"Co==", hash, nil), ErrBadSignature, "must be base64")
}

func TestKeyForms(t *testing.T) {
	const key = "(public-key \n (ecc \n  (curve Ed25519)\n  (q #AB01#)\n  )\n )\n"
	for _, test := range []struct{ text, want string }{
		{"(signature (data x) (public-key (ecc (curve Ed25519) (q #ab 01#))))", key},
		{"(signature(public-key(ecc(curve Ed25519)(q#AB01#))))\x00", key},
		{"(signature (public-key (ecc (curve \"NIST P-256\") (flags eddsa x) (q #00#))))",
			"(public-key \n (ecc \n  (curve \"NIST P-256\")\n  (flags eddsa x)\n  (q #00#)\n  )\n )\n"},
		{`(signature (public-key (ecc (q "\n) \" \\ä"))))`, "(public-key \n (ecc \n  (q \"\\n) \\\" \\\\ä\")\n  )\n )\n"},
	} {
		got, err := Key(fieldOf(test.text))
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
		"(signature (public-key (ecc (q \"\u0100\"))))", // not a byte
		"(signature (public-key (ecc\x00(q #00#))))",
		"(signature (public-key (ecc (q #00))))",
		"(signature (public-key (ecc (q 3:abc)))) trailing",
		"(sig-val (public-key (ecc (q #00#))))",
		"(signature (public-key (ecc (q |AAAA|))))",
		strings.Repeat("(", 100000),
		strings.Repeat("(a ", 9) + strings.Repeat(")", 9),
	} {
		if got, err := Key(fieldOf(text)); err == nil {
			t.Errorf("%.80q: got %q, want an error", text, got)
		}
	}
	for _, signature := range []string{"", "1", "1;host", "1;host;;", ";;", "1;a;b;c"} {
		if got, err := Key(signature); err == nil {
			t.Errorf("%q: got %q, want an error", signature, got)
		}
	}
}
