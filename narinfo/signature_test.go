package narinfo

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"math/big"
	"os"
	"strings"
	"sync"
	"testing"

	"nar-herder/narinfo/signing"
)

func TestSigningKey(t *testing.T) {
	for _, test := range []struct{ narinfo, key string }{
		{"production/bayfront-hello-2.12.2.narinfo", "production/bordeaux.guix.gnu.org.pub"},
		{"production/berlin-sed-4.4.narinfo", "production/ci.guix.gnu.org.pub"},
		{"cases/ok-ed25519.narinfo", "cases/keys/main.pub"},
		{"cases/ok-rsa.narinfo", "cases/keys/rsa.pub"},
		{"cases/bad-unauthorized-key.narinfo", "cases/keys/other.pub"},
		{"cases/bad-tampered-narhash.narinfo", "cases/keys/main.pub"}, // parsed, not verified
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
		// libgcrypt prints a space at the end of some lines. Guix's repository, where the
		// first key is from, has removed it.
		want := strings.NewReplacer("key\n", "key \n", "ecc\n", "ecc \n").Replace(string(key))
		if err != nil || got != want {
			t.Errorf("%s: got %q, %v, want %q", test.narinfo, got, err, want)
		}
	}
}

// A key that libgcrypt prints as a quoted string keeps this form.
func TestSigningKeyQuoted(t *testing.T) {
	text, err := os.ReadFile("testdata/signatures/quoted-q.narinfo")
	if err != nil {
		t.Fatal(err)
	}
	const want = "(public-key \n (ecc \n  (curve Ed25519)\n  (q \"#9ÁÏó59ê\\v{|FØ6¥¸A²>%²^lDô=A?\\vÍÙ_\")\n  )\n )\n"
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

// Real signatures of guix publish, the build farms, and libgcrypt. Those in
// testdata/signatures are rare cases made with libgcrypt 1.10: values that are printed as
// quoted strings, or have fewer than 32 bytes.
func TestCheckSignatureReal(t *testing.T) {
	for _, pattern := range []string{
		"../testdata/production/*.narinfo",
		"../testdata/published*/*.narinfo",
		"testdata/signatures/*.narinfo",
	} {
		forEachNarinfo(t, pattern, func(t *testing.T, text []byte) {
			if err := mustParse(t, text).CheckSignature(nil); err != nil {
				t.Error(err)
			}
		})
	}
}

// readKeys returns the keys of an ACL or of key files.
func readKeys(t testing.TB, files ...string) *signing.Keys {
	t.Helper()
	keys := new(signing.Keys)
	for _, file := range files {
		text, err := os.ReadFile("../testdata/" + file)
		if err != nil {
			t.Fatal(err)
		}
		more, err := signing.ParseKeys(text)
		if err != nil {
			t.Fatal(err)
		}
		keys.Add(more)
	}
	return keys
}

// With the ACL, the verdicts are those of Guix's valid-narinfo?. Without keys, anybody may
// sign.
func TestCheckSignatureCases(t *testing.T) {
	verdicts := map[string]struct {
		err     error
		message string
	}{
		"bad-base64.narinfo":                       {signing.ErrCorrupt, "corrupt signature: must be base64"},
		"bad-sexp.narinfo":                         {signing.ErrCorrupt, "corrupt signature: the s-expression is cut off"},
		"bad-signature-of-other-text.narinfo":      {signing.ErrHashMismatch, "hash mismatch: the sha256 of the text"},
		"bad-signed-part-lacks-references.narinfo": {signing.ErrBadSignature, "References isn't signed"},
		"bad-tampered-narhash.narinfo":             {signing.ErrHashMismatch, "hash mismatch: the sha256 of the text"},
		"bad-tampered-reference.narinfo":           {signing.ErrHashMismatch, "hash mismatch: the sha256 of the text"},
		"bad-unauthorized-key.narinfo":             {signing.ErrUnauthorized, "unauthorized key: (public-key (ecc (curve Ed25519) (q #D3724552"},
		"bad-unsigned.narinfo":                     {ErrUnsigned, "no signature"},
		"bad-version-2.narinfo":                    {signing.ErrCorrupt, `corrupt signature: version "2"`},
	}
	keys := readKeys(t, "cases/keys/acl")
	if keys.Len() != 2 {
		t.Errorf("the ACL has %d keys", keys.Len())
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
		n := mustParse(t, text)
		checkVerdict(t, n.CheckSignature(keys), want.err, want.message)
		if want.err == signing.ErrUnauthorized {
			want.err = nil
		}
		checkVerdict(t, n.CheckSignature(nil), want.err, want.message)
		if err := n.CheckSignature(new(signing.Keys)); err == nil {
			t.Error("valid without a key")
		}
	})
	if tested != len(verdicts) {
		t.Errorf("%d of %d cases are there", tested, len(verdicts))
	}
}

// Each server's narinfo is valid with its own key, and with both, but not with the other's.
func TestCheckSignatureProduction(t *testing.T) {
	files := map[string]string{
		"production/bayfront-hello-2.12.2.narinfo": "production/bordeaux.guix.gnu.org.pub",
		"production/berlin-sed-4.4.narinfo":        "production/ci.guix.gnu.org.pub",
	}
	var all []string
	for _, key := range files {
		all = append(all, key)
	}
	for file, key := range files {
		text, err := os.ReadFile("../testdata/" + file)
		if err != nil {
			t.Fatal(err)
		}
		n := mustParse(t, text)
		checkVerdict(t, n.CheckSignature(readKeys(t, all...)), nil, "")
		for _, other := range all {
			var want error
			if other != key {
				want = signing.ErrUnauthorized
			}
			checkVerdict(t, n.CheckSignature(readKeys(t, other)), want, "unauthorized key")
		}
	}
}

// checkVerdict asserts that an error is want, none of the others, and has the message.
func checkVerdict(t *testing.T, got, want error, message string) {
	t.Helper()
	if want == nil && got == nil {
		return
	}
	for _, verdict := range []error{
		ErrUnsigned, signing.ErrBadSignature, signing.ErrCorrupt, signing.ErrHashMismatch, signing.ErrInvalid, signing.ErrUnknownAlgorithm, signing.ErrUnauthorized,
	} {
		// Tests may leave open which of the bad ones it is.
		anyBad := want == signing.ErrBadSignature && verdict != signing.ErrUnknownAlgorithm && verdict != signing.ErrUnauthorized
		if errors.Is(got, verdict) != errors.Is(want, verdict) && !anyBad {
			t.Errorf("got %v, want %v", got, want)
			return
		}
	}
	if want == nil || !strings.Contains(got.Error(), message) || strings.Contains(got.Error(), "\n") {
		t.Errorf("got %v, want one line with %q", got, message)
	}
}

// Each bit of a narinfo is flipped. Either Parse or CheckSignature must return an error.
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
				err = n.CheckSignature(nil)
			}
			switch {
			case err != nil && i/8 < first:
				// Only changed space and case may pass, up to the
				// algorithm.
				if errors.Is(err, signing.ErrUnknownAlgorithm) {
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
			t.Errorf("%s: %d changes of unsigned bytes, %d of forms", file, unsigned, same)
		}
	}
}

// decodedSignature returns the s-expression in a form that ignores case and the kind of
// space.
func decodedSignature(t *testing.T, n *Narinfo) string {
	t.Helper()
	text, err := base64.StdEncoding.DecodeString(n.Signature()[strings.LastIndexByte(n.Signature(), ';')+1:])
	if err != nil {
		t.Fatal(err)
	}
	return strings.ToUpper(strings.Join(strings.FieldsFunc(string(text), func(r rune) bool { return strings.ContainsRune(" \n\t\v\f\r", r) }), " "))
}

// sign returns the s-expression for a text.
func sign(text string) string {
	key := signer()
	hash := sha256.Sum256([]byte(text))
	s, err := rsa.SignPKCS1v15(nil, key, crypto.SHA256, hash[:])
	if err != nil {
		panic(err)
	}
	return fmt.Sprintf("(signature (data (flags pkcs1) (hash sha256 #%X#)) (sig-val (rsa (s #00%X#))) (public-key (rsa (n #00%X#) (e #%X#))))",
		hash, s, key.N.Bytes(), big.NewInt(int64(key.E)).Bytes())
}

var signer = sync.OnceValue(func() *rsa.PrivateKey {
	key, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		panic(err)
	}
	return key
})

// withSignature returns a narinfo with above, usually the constant signed, above the
// signature.
func withSignature(above, sexp string) []byte {
	return []byte(above + "Signature: 1;host;" + base64.StdEncoding.EncodeToString([]byte(sexp)) + "\n" + block)
}

// The fields that the client depends on must be signed, whether the signature is valid or
// not.
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
		{"StorePath", hash + references, storePath, signing.ErrBadSignature, "StorePath isn't"},
		{"NarHash", storePath + references, hash, signing.ErrBadSignature, "NarHash isn't"},
		{"References", storePath + hash, references, signing.ErrBadSignature, "References isn't"},
		{"nothing", "", storePath + hash + references, signing.ErrBadSignature, "StorePath isn't"},
		// The mark in a comment ends the signed bytes; the field continues below.
		{"continued", storePath + hash + references + "# ", "Signature: in a comment\n+" + item + "\n", signing.ErrBadSignature, "References isn't"},
		{"other field's name", storePath + hash + references + "X-", "Signature: x\n", signing.ErrBadSignature, "no colon"},
	} {
		t.Run(test.name, func(t *testing.T) {
			text := withSignature(test.above, sign(test.above))
			if test.name == "no newline before" {
				text = bytes.Replace(text, []byte("#Signature: "), []byte("#Signature: \nSignature: "), 1)
			} else {
				at := len(test.above)
				if strings.HasSuffix(test.above, "\n") || at == 0 {
					at = len(text) // below everything
				}
				text = append(append(bytes.Clone(text[:at]), test.below...), text[at:]...)
			}
			n := mustParse(t, text)
			if string(n.Signed()) != test.above {
				t.Fatalf("Signed() = %q", n.Signed())
			}
			checkVerdict(t, n.CheckSignature(nil), test.err, test.message)
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
	f.Add(signed, sign(signed))
	f.Fuzz(func(t *testing.T, above, sexp string) {
		n, err := Parse(withSignature(above, sexp))
		if err != nil {
			return
		}
		err = n.CheckSignature(nil)
		verdicts := 0
		for _, verdict := range []error{nil, ErrUnsigned, signing.ErrBadSignature, signing.ErrUnknownAlgorithm} {
			if errors.Is(err, verdict) {
				verdicts++
			}
		}
		if verdicts != 1 {
			t.Fatalf("%v is %d verdicts", err, verdicts)
		}
		if err != nil && !errors.Is(err, signing.ErrUnknownAlgorithm) {
			return
		}
		// Then another text can't have this signature.
		other, parseErr := Parse(withSignature("#\n"+above, sexp))
		if parseErr != nil {
			t.Fatal(parseErr)
		}
		if got := other.CheckSignature(nil); !errors.Is(got, signing.ErrBadSignature) {
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
			n, keys := new(Narinfo), readKeys(b, "production/bordeaux.guix.gnu.org.pub", "cases/keys/acl")
			b.ReportAllocs()
			for b.Loop() {
				if err := ParseInto(n, text); err != nil {
					b.Fatal(err)
				}
				if err := n.CheckSignature(keys); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "verifications/s")
		})
	}
}
