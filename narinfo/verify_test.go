package narinfo

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
)

// What real programs signed: guix publish, the build farms, and libgcrypt.
// Those in testdata/signatures are made with libgcrypt 1.10 for what is rare:
// values that it prints as quoted strings, or in less than 32 bytes.
func TestCheckSignatureReal(t *testing.T) {
	for _, pattern := range []string{
		"../testdata/production/*.narinfo",
		"../testdata/published*/*.narinfo",
		"testdata/signatures/*.narinfo",
	} {
		forEachNarinfo(t, pattern, func(t *testing.T, text []byte) {
			if err := mustParse(t, text).CheckSignature(); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestCheckSignatureCases(t *testing.T) {
	verdicts := map[string]struct {
		err     error
		message string
	}{
		"bad-base64.narinfo":                       {ErrBadSignature, "must be base64"},
		"bad-sexp.narinfo":                         {ErrBadSignature, "cut off"},
		"bad-signature-of-other-text.narinfo":      {ErrBadSignature, "sha256 of the text"},
		"bad-signed-part-lacks-references.narinfo": {ErrBadSignature, "References isn't signed"},
		"bad-tampered-narhash.narinfo":             {ErrBadSignature, "sha256 of the text"},
		"bad-tampered-reference.narinfo":           {ErrBadSignature, "sha256 of the text"},
		"bad-unauthorized-key.narinfo":             {}, // trust isn't looked at
		"bad-unsigned.narinfo":                     {ErrUnsigned, "no signature"},
		"bad-version-2.narinfo":                    {ErrBadSignature, `version "2"`},
	}
	tested := 0
	forEachNarinfo(t, "../testdata/cases/*.narinfo", func(t *testing.T, text []byte) {
		_, name, _ := strings.Cut(t.Name(), "/cases/")
		want, ok := verdicts[name]
		if ok {
			tested++
		} else if !strings.HasPrefix(name, "ok-") {
			t.Fatal("no verdict is known")
		}
		checkVerdict(t, mustParse(t, text).CheckSignature(), want.err, want.message)
	})
	if tested != len(verdicts) {
		t.Errorf("%d of %d cases are there", tested, len(verdicts))
	}
}

// checkVerdict wants an error that is want, none of the others, and says message.
func checkVerdict(t *testing.T, got, want error, message string) {
	t.Helper()
	if want == nil && got == nil {
		return
	}
	for _, verdict := range []error{ErrUnsigned, ErrBadSignature, ErrUnknownAlgorithm} {
		if errors.Is(got, verdict) != (verdict == want) {
			t.Errorf("got %v, want %v", got, want)
			return
		}
	}
	if want == nil || !strings.Contains(got.Error(), message) || strings.Contains(got.Error(), "\n") {
		t.Errorf("got %v, want one line with %q", got, message)
	}
}

// Each bit of a narinfo is flipped. The errors may be of either Parse or
// CheckSignature.
func TestCheckSignatureEveryBit(t *testing.T) {
	for _, file := range []string{
		"../testdata/production/bayfront-hello-2.12.2.narinfo",
		"../testdata/production/berlin-sed-4.4.narinfo", // URL and so on are signed here
		"../testdata/cases/ok-rsa.narinfo",
		"testdata/signatures/quoted-r.narinfo",
	} {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		n := mustParse(t, text)
		before := decodedSignature(t, n)
		first := len(n.Signed()) + len(signatureMark)
		last := first + bytes.IndexByte(text[first:], '\n')
		host := first + bytes.IndexByte(text[first:], ';') + 1
		body := host + bytes.IndexByte(text[host:], ';')
		unsigned, same := 0, 0
		for i := range 8 * len(text) {
			flipped := bytes.Clone(text)
			flipped[i/8] ^= 1 << (i % 8)
			n, err := Parse(flipped)
			if err == nil {
				err = n.CheckSignature()
			}
			switch {
			case err != nil && i/8 < first:
				// Only what isn't text may be taken for good up to the algorithm.
				if errors.Is(err, ErrUnknownAlgorithm) {
					t.Errorf("%s: bit %d of byte %d: %v", file, i%8, i/8, err)
				}
			case err != nil:
			case i/8 > last || host <= i/8 && i/8 < body:
				unsigned++
			case body < i/8 && i/8 < last && decodedSignature(t, n) == before:
				same++ // a digit became lower case, or a space another one
			default:
				t.Errorf("%s: bit %d of byte %d (%q) wasn't noticed", file, i%8, i/8, text[i/8])
			}
		}
		t.Logf("%s: of %d bits %d aren't signed, and %d change how the signature is written only", file, 8*len(text), unsigned, same)
		if most := 8 * (len(text) - last + body - host); unsigned == 0 || unsigned > most || same > len(before) {
			t.Errorf("%s: %d changes of what isn't signed, %d of forms", file, unsigned, same)
		}
	}
}

// decodedSignature returns the s-expression in a form in which only case and
// the kind of space don't matter.
func decodedSignature(t *testing.T, n *Narinfo) string {
	t.Helper()
	text, err := base64.StdEncoding.DecodeString(n.Signature()[strings.LastIndexByte(n.Signature(), ';')+1:])
	if err != nil {
		t.Fatal(err)
	}
	return strings.ToUpper(strings.Join(strings.FieldsFunc(string(text), func(r rune) bool { return strings.ContainsRune(" \n\t\r", r) }), " "))
}

// withSignature returns a narinfo of which above, usually the constant signed,
// stands above the signature.
func withSignature(above, sexp string) []byte {
	return []byte(above + "Signature: 1;host;" + base64.StdEncoding.EncodeToString([]byte(sexp)) + "\n" + block)
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

func TestCheckSignatureForms(t *testing.T) {
	good := newECDSASigner(1).sign(signed)
	if err := mustParse(t, withSignature(signed, good)).CheckSignature(); err != nil {
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
			checkVerdict(t, mustParse(t, withSignature(signed, changed)).CheckSignature(), test.err, test.message)
		})
	}
}

// The last character of base64 has bits that aren't data, and must be 0.
func TestCheckSignatureBase64(t *testing.T) {
	sexp := newECDSASigner(1).sign(signed)
	sexp += strings.Repeat("\n", 3-(len(sexp)+2)%3) // one byte in the last four characters
	text := withSignature(signed, sexp)
	if err := mustParse(t, text).CheckSignature(); err != nil {
		t.Fatal(err)
	}
	changed := bytes.Replace(text, []byte("Cg==\n"), []byte("Co==\n"), 1)
	if bytes.Equal(changed, text) {
		t.Fatalf("%s doesn't end in Cg==", text)
	}
	checkVerdict(t, mustParse(t, changed).CheckSignature(), ErrBadSignature, "must be base64")
}

// What the client relies on must have been signed, with a good signature or not.
func TestCheckSignatureCovers(t *testing.T) {
	const (
		storePath  = "StorePath: /gnu/store/" + item + "\n"
		hash       = "NarHash: " + narHash + "\n"
		references = "References: " + item + "\n"
	)
	for _, test := range []struct {
		name, above, below string
		err                error
		message            string
	}{
		{"least", storePath + hash + references, "", nil, ""},
		{"no newline before", storePath + hash + references + "#", "Signature: ", nil, ""},
		{"StorePath", hash + references, storePath, ErrBadSignature, "StorePath isn't"},
		{"NarHash", storePath + references, hash, ErrBadSignature, "NarHash isn't"},
		{"References", storePath + hash, references, ErrBadSignature, "References isn't"},
		{"nothing", "", storePath + hash + references, ErrBadSignature, "StorePath isn't"},
		// The mark in a comment ends what is signed; the field goes on below.
		{"continued", storePath + hash + references + "# ", "Signature: in a comment\n+" + item + "\n", ErrBadSignature, "References isn't"},
		{"other field's name", storePath + hash + references + "X-", "Signature: x\n", ErrBadSignature, "no colon"},
	} {
		t.Run(test.name, func(t *testing.T) {
			text := withSignature(test.above, newECDSASigner(2).sign(test.above))
			if test.name == "no newline before" {
				text = bytes.Replace(text, []byte("#Signature: "), []byte("#Signature: \nSignature: "), 1)
			} else {
				at := len(test.above)
				if strings.HasSuffix(test.above, "\n") || at == 0 {
					at = len(text) // below all
				}
				text = append(append(bytes.Clone(text[:at]), test.below...), text[at:]...)
			}
			n := mustParse(t, text)
			if string(n.Signed()) != test.above {
				t.Fatalf("Signed() = %q", n.Signed())
			}
			checkVerdict(t, n.CheckSignature(), test.err, test.message)
		})
	}
}

func FuzzCheckSignature(f *testing.F) {
	for _, file := range []string{
		"../testdata/production/bayfront-hello-2.12.2.narinfo",
		"../testdata/production/berlin-sed-4.4.narinfo",
		"../testdata/cases/ok-rsa.narinfo",
		"../testdata/cases/bad-sexp.narinfo",
		"../testdata/cases/bad-signature-of-other-text.narinfo",
		"testdata/signatures/quoted-hash.narinfo",
		"testdata/signatures/quoted-s.narinfo",
	} {
		text, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		n := mustParse(f, text)
		sexp, err := base64.StdEncoding.DecodeString(n.Signature()[strings.LastIndexByte(n.Signature(), ';')+1:])
		if err != nil {
			f.Fatal(err)
		}
		f.Add(string(n.Signed()), string(sexp))
	}
	f.Add(signed, newECDSASigner(1).sign(signed))
	f.Fuzz(func(t *testing.T, above, sexp string) {
		n, err := Parse(withSignature(above, sexp))
		if err != nil {
			return
		}
		err = n.CheckSignature()
		verdicts := 0
		for _, verdict := range []error{nil, ErrUnsigned, ErrBadSignature, ErrUnknownAlgorithm} {
			if errors.Is(err, verdict) {
				verdicts++
			}
		}
		if verdicts != 1 {
			t.Fatalf("%v is %d verdicts", err, verdicts)
		}
		if err != nil && !errors.Is(err, ErrUnknownAlgorithm) {
			return
		}
		// Then another text can't have this signature.
		other, parseErr := Parse(withSignature("#\n"+above, sexp))
		if parseErr != nil {
			t.Fatal(parseErr)
		}
		if got := other.CheckSignature(); !errors.Is(got, ErrBadSignature) {
			t.Fatalf("%v; of another text, %v", err, got)
		}
	})
}

func BenchmarkCheckSignature(b *testing.B) {
	for _, bench := range []struct{ name, file string }{
		{"ECDSA", "../testdata/production/bayfront-hello-2.12.2.narinfo"},
		{"RSA2048", "../testdata/cases/ok-rsa.narinfo"},
	} {
		b.Run(bench.name, func(b *testing.B) {
			text, err := os.ReadFile(bench.file)
			if err != nil {
				b.Fatal(err)
			}
			n := mustParse(b, text)
			b.ReportAllocs()
			for b.Loop() {
				if err := n.CheckSignature(); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "verifications/s")
		})
	}
}
