package signing

import (
	"crypto/sha256"
	"fmt"
	"math/big"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	"filippo.io/edwards25519"
	"filippo.io/edwards25519/field"
	"github.com/cloudflare/circl/math/fp25519"

	"nar-herder/narinfo/signing/sexp"
)

const (
	q1 = "D35EA6267670FF1C08CFE12F4F39C8A4F466A80544EAAC62B77C5A802E6EDB94"
	q2 = "8D156F295D24B0D9A86FA5741A840FF2D24F60F7B6C4134814AD55625971B394"

	key1 = "(public-key (ecc (curve Ed25519) (q #" + q1 + "#)))"
	key2 = "(public-key (ecc (curve Ed25519) (q #" + q2 + "#)))"

	tag = " (tag (guix import))"
)

// rsaText returns an RSA key of so many bits.
func rsaText(bits uint) string {
	n := new(big.Int).Lsh(big.NewInt(1), bits)
	return fmt.Sprintf("(public-key (rsa (n #%s#) (e #010001#)))", printedNumber(n.Sub(n, big.NewInt(1))))
}

func TestParseKeys(t *testing.T) {
	for _, test := range []struct {
		name, text string
		want       []string // as texts of single keys
	}{
		{"one key", key1, []string{key1}},
		{"NUL and space around", "\n\t " + key1 + "\r\n\x00", []string{key1}},
		{"empty ACL", "(acl)", nil},
		{"ACL", "(acl (entry " + key1 + tag + ") (entry " + key2 + tag + "))", []string{key1, key2}},
		{"repeated", "(acl (entry " + key1 + tag + ") (entry " + key2 + tag + ") (entry " + key1 + tag + "))", []string{key1, key2}},
		{"subject that isn't a key", "(acl (entry (hash sha1 #00#)" + tag + ") (entry name" + tag + ") (entry " + key1 + tag + "))", []string{key1}},
		{"quoted names", `("acl" ("entry" ` + key1 + ` (#746167# ("guix" #696D706F7274#))))`, []string{key1}},
		{"longest RSA key", rsaText(maxRSABits), []string{rsaText(maxRSABits)}},
	} {
		keys, err := ParseKeys([]byte(test.text))
		if err != nil {
			t.Errorf("%s: %v", test.name, err)
			continue
		}
		union := new(Keys)
		for _, text := range test.want {
			one, err := ParseKeys([]byte(text))
			if err != nil || one.Len() != 1 {
				t.Fatalf("%s: %d keys, %v", text, one.Len(), err)
			}
			if !keys.Contains(one.All()[0]) {
				t.Errorf("%s: lacks %s", test.name, text)
			}
			union.Add(one)
		}
		if keys.Len() != len(test.want) || !slices.Equal(keys.All(), union.All()) {
			t.Errorf("%s: %d keys %q, want %q", test.name, keys.Len(), keys.All(), union.All())
		}
	}
}

// The key of a signature is found in a set, however either of them writes it.
func TestKeysSpellings(t *testing.T) {
	numbers, err := sexp.Parse(rsaText(1024))
	if err != nil {
		t.Fatal(err)
	}
	n := strings.Trim(numbers.List[1].List[1].List[1].Atom, "#")
	for _, spellings := range [][]string{
		{
			key1,
			"(public-key (ecc (curve Ed25519) (q #" + q1 + "#)))",
			"(public-key (ecc (curve Ed25519) (q #" + strings.ToLower(q1) + "#)))",
			"(public-key (ecc (curve Ed25519) (q # " + q1[:7] + "\n\t" + q1[7:] + "\r\n#)))",
			"(public-key (ecc (q #" + q1 + "#) (curve Ed25519)))",
			"(public-key(ecc(curve Ed25519)(q#" + q1 + "#)))",
			`("public-key" ("ecc" ("curve" "Ed25519") ("q" #` + q1 + `#)))`,
			"(#7075626C69632D6B6579# (ecc (curve #45643235353139#) (q #" + q1 + "#)))",
			"(public-key \n (ecc \n  (curve Ed25519)\n  (q #" + q1 + "#)\n  )\n )\n",
			`(public-key (ecc (curve Ed25519) (q "\xD3^\xa6&vp\xff\x1c\x08\xcf\xe1/O9\xc8\xa4\xf4f\xa8\x05D\xea\xacb\xb7|Z\x80.n\xdb\x94")))`,
		},
		{
			"(public-key (rsa (n #" + n + "#) (e #010001#)))",
			"(public-key (rsa (n #" + n[2:] + "#) (e #010001#)))",
			"(public-key (rsa (n #0000" + n + "#) (e #00010001#)))",
			"(public-key (rsa (e #010001#) (n #" + n + "#)))",
		},
	} {
		for _, first := range spellings {
			keys, err := ParseKeys([]byte(first))
			if err != nil {
				t.Errorf("%q: %v", first, err)
				continue
			}
			for _, second := range spellings {
				key, err := Key(fieldOf("(signature " + second + ")"))
				if err != nil || !keys.Contains(key) {
					t.Errorf("%q and %q differ: %q, %v", first, second, key, err)
				}
			}
		}
	}
	keys, err := ParseKeys([]byte(key1))
	if err != nil {
		t.Fatal(err)
	}
	for _, other := range []string{key2, rsaText(1024)} {
		if key, err := Key(fieldOf("(signature " + other + ")")); err != nil || keys.Contains(key) {
			t.Errorf("%q: %v", key, err)
		}
	}
}

func TestParseKeysErrors(t *testing.T) {
	for _, test := range []struct{ name, text, want string }{
		{"empty", "", "begins with '('"},
		{"NUL", "\x00", "begins with '('"},
		{"binary", "\x7fELF\x02", "begins with '('"},
		{"PEM", "-----BEGIN PUBLIC KEY-----", "begins with '('"},
		{"comment above", "; bordeaux\n" + key1, "begins with '('"},
		{"comment within", "(public-key ; bordeaux\n (ecc (curve Ed25519) (q #" + q1 + "#)))", "comments aren't allowed"},
		{"two keys", key1 + "\n" + key2, "more text"},
		{"enormous", key1 + strings.Repeat(" ", MaxKeysSize), "at most"},
		{"enormous list", strings.Repeat("(a)", MaxKeysSize/3), "more text"},
		{"many entries", "(acl" + strings.Repeat(" (a)", MaxKeysSize/4-2) + ")", "entry 1 of the ACL must be"},
		{"deep", strings.Repeat("(acl ", 1000) + strings.Repeat(")", 1000), "levels"},
		{"deep at the limit of size", strings.Repeat("(", MaxKeysSize), "levels"},
		{"private key", "(private-key (ecc (curve Ed25519) (q #" + q1 + "#) (d #0102030405060708#)))", "this is a private key"},
		{"key pair", "(key-data " + key1 + ")", "this is a private key"},
		{"signature", "(signature " + key1 + ")", "must be of the form (public-key …) or (acl …)"},
		{"no parameters", "(public-key)", "public-key must be"},
		{"other curve", `(public-key (ecc (curve "NIST P-256") (q #04` + q1 + q2 + `#)))`, "NIST P-256"},
		{"other curve of the same form", "(public-key (ecc (curve Curve25519) (q #40" + q1 + "#)))", "Curve25519"},
		{"EdDSA", "(public-key (ecc (curve Ed25519) (flags eddsa) (q #" + q1 + "#)))", "flags"},
		{"other algorithm", "(public-key (dsa (p #01#) (q #01#) (g #01#) (y #01#)))", "dsa"},
		{"no point", "(public-key (ecc (curve Ed25519) (q #" + "02" + strings.Repeat("00", 31) + "#)))", "must be a point"},
		{"point of low order", "(public-key (ecc (curve Ed25519) (q #" + smallOrder[4] + "#)))", "small order"},
		{"short q", "(public-key (ecc (curve Ed25519) (q #" + q1[2:] + "#)))", "must be a point"},
		{"RSA of 512 bits", rsaText(512), "512 bits, must have 1024"},
		{"RSA of 16,385 bits", rsaText(maxRSABits + 1), "16385 bits"},
		{"RSA at the limit of size", rsaText(4 * (MaxKeysSize - 100) / 8), "bits, must have 1024 to 16384"},
		{"other tag", "(acl (entry " + key1 + tag + ") (entry " + key2 + " (tag (guix export))))", "entry 2 of the ACL must be"},
		{"longer tag", "(acl (entry " + key1 + " (tag (guix import export))))", "entry 1 of the ACL must be"},
		{"tag of any", "(acl (entry " + key1 + " (tag (*))))", "entry 1 of the ACL must be"},
		{"no tag", "(acl (entry " + key1 + "))", "entry 1 of the ACL must be"},
		{"more in an entry", "(acl (entry " + key1 + " (propagate)" + tag + "))", "entry 1 of the ACL must be"},
		{"key without an entry", "(acl " + key1 + ")", "entry 1 of the ACL must be"},
		{"atom", "(acl x)", "entry 1 of the ACL must be"},
		{"bad key in an ACL", "(acl (entry " + key1 + tag + ") (entry " + rsaText(512) + tag + "))", "entry 2 of the ACL: "},
	} {
		keys, err := ParseKeys([]byte(test.text))
		if err == nil || !strings.Contains(err.Error(), test.want) || strings.Contains(err.Error(), "\n") || len(err.Error()) > 400 {
			t.Errorf("%s: got %v, %v, want %q", test.name, keys, err, test.want)
		}
		if strings.Contains(fmt.Sprint(err), "0102") {
			t.Errorf("%s: %v quotes a private key", test.name, err)
		}
	}
}

// No beginning of a file is taken for the file.
func TestParseKeysTruncated(t *testing.T) {
	for _, file := range []string{"../../testdata/cases/keys/acl", "../../testdata/cases/keys/rsa.pub", "../../testdata/production/ci.guix.gnu.org.pub"} {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := ParseKeys(text); err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		trimmed := strings.TrimSpace(string(text))
		for i := range trimmed {
			if keys, err := ParseKeys([]byte(trimmed[:i])); err == nil {
				t.Errorf("%s: the first %d bytes have %d keys", file, i, keys.Len())
			}
		}
	}
}

// Guix asks for the key before it compares the hash, and verifies last.
func TestVerifyOrder(t *testing.T) {
	signer := newTestSigner(1)
	good := signer.sign(signed)
	text, err := Key(fieldOf(good))
	if err != nil {
		t.Fatal(err)
	}
	authorized, err := ParseKeys([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	others, err := ParseKeys([]byte(key1))
	if err != nil {
		t.Fatal(err)
	}
	forged := strings.Replace(good, element(good, "s"), "(s #01#)", 1)
	odd := strings.Replace(good, "rfc6979", "raw", 1)
	for _, test := range []struct {
		name, text, sexp string
		keys             *Keys
		want             error
		message          string
	}{
		{"any key", signed, good, nil, nil, ""},
		{"authorized", signed, good, authorized, nil, ""},
		{"no keys", signed, good, new(Keys), ErrUnauthorized, "unauthorized key: (public-key (ecc (curve Ed25519) (q #"},
		{"other keys", signed, good, others, ErrUnauthorized, "unauthorized key"},
		{"other keys, other text", "x", good, others, ErrUnauthorized, "unauthorized key"},
		{"other keys, forged", signed, forged, others, ErrUnauthorized, "unauthorized key"},
		{"other keys, corrupt", signed, "(signature)", others, ErrCorrupt, "corrupt signature"},
		{"other text, forged", "x", forged, authorized, ErrHashMismatch, "hash mismatch"},
		{"forged", signed, forged, authorized, ErrInvalid, "invalid signature"},
		{"unsupported", signed, odd, authorized, ErrUnknownAlgorithm, "raw"},
		{"other keys, unsupported", signed, odd, others, ErrUnauthorized, "unauthorized key"},
		{"other text, unsupported", "x", odd, authorized, ErrHashMismatch, "hash mismatch"},
	} {
		checkVerdict(t, Verify(fieldOf(test.sexp), sha256.Sum256([]byte(test.text)), test.keys), test.want, test.message)
		if t.Failed() {
			t.Fatal(test.name)
		}
	}
}

// Verifying with and without a table of multiples is the same.
func TestMultiples(t *testing.T) {
	random := seeded(t)
	q := timesBase(big.NewInt(12345))
	table := multiplesOf(q)
	check := func(number *big.Int) {
		t.Helper()
		var b [scalarSize]byte
		s, err := scalarOf(number.Mod(number, groupOrder).FillBytes(b[:]))
		if err != nil {
			t.Fatal(err)
		}
		sum := sumPointOf(timesBase(big.NewInt(99)))
		want := new(big.Int).Add(new(big.Int).Mul(number, big.NewInt(12345)), big.NewInt(99))
		table.addTo(&sum, s)
		var coordinates [4]field.Element
		for i, c := range []*fp25519.Elt{&sum.x, &sum.y, &sum.z, &sum.t} {
			fp25519.Modp(c)
			if _, err := coordinates[i].SetBytes(c[:]); err != nil {
				t.Fatal(err)
			}
		}
		got, err := new(edwards25519.Point).SetExtendedCoordinates(&coordinates[0], &coordinates[1], &coordinates[2], &coordinates[3])
		if err != nil || got.Equal(timesBase(want.Mod(want, groupOrder))) != 1 {
			t.Errorf("%x times the point is wrong", number)
		}
	}
	for i := range uint(253) {
		power := new(big.Int).Lsh(big.NewInt(1), i)
		for _, offset := range []int64{-maxDigit - 1, -1, 0, maxDigit - 1, maxDigit} {
			check(new(big.Int).Add(power, big.NewInt(offset)))
			check(new(big.Int).Sub(groupOrder, new(big.Int).Add(power, big.NewInt(offset))))
		}
	}
	for range 1000 {
		var b [scalarSize]byte
		random.Read(b[:])
		check(new(big.Int).SetBytes(b[:]))
	}
}

// Signatures by one key that is used often, and by several goroutines.
func TestVerifyOften(t *testing.T) {
	signer := newTestSigner(77)
	var group sync.WaitGroup
	for goroutine := range 4 {
		group.Go(func() {
			for i := range usesForTable {
				text := fmt.Sprintf("%s#%d %d\n", signed, goroutine, i)
				if err := check(text, signer.sign(text)); err != nil {
					t.Errorf("%d: %v", i, err)
				}
				forged := strings.Replace(signer.sign(text), hashOf(text), hashOf(signed), 1)
				checkVerdict(t, check(signed, forged), ErrInvalid, "the key didn't make")
			}
		})
	}
	group.Wait()
}

// The work for a signature is bounded by its length, before anything else is looked at.
func TestVerifyTooLong(t *testing.T) {
	good := newTestSigner(1).sign(signed)
	for _, test := range []struct {
		length int
		want   error
	}{{maxSignatureSize, nil}, {maxSignatureSize + 1, ErrCorrupt}, {64 << 20, ErrCorrupt}} {
		signature := fieldOf(good)
		signature = strings.Replace(signature, "host", strings.Repeat("h", test.length-len(signature)+len("host")), 1)
		checkVerdict(t, Verify(signature, sha256.Sum256([]byte(signed)), nil), test.want, "at most 65536")
	}
}

// The keys of more signers than are kept are decoded again.
func TestDecodedKeysBound(t *testing.T) {
	for i := range byte(3 * maxDecodedKeys) {
		if err := check(signed, newTestSigner(i).sign(signed)); err != nil {
			t.Fatal(err)
		}
	}
	if kept := decodedKeys().Len(); kept != maxDecodedKeys {
		t.Errorf("%d keys are kept", kept)
	}
}
