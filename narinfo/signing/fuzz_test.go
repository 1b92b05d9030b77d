package signing

import (
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
)

// FuzzParseKeys: accepted keys are read again from their printed form, and an ACL of them has
// the same keys.
func FuzzParseKeys(f *testing.F) {
	for _, file := range []string{"cases/keys/acl", "cases/keys/main.pub", "cases/keys/rsa.pub", "production/bordeaux.guix.gnu.org.pub"} {
		text, err := os.ReadFile("../../testdata/" + file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(string(text))
	}
	for _, seed := range []string{
		"(acl)", key1, rsaText(1024), rsaText(512), "(acl (entry (hash sha1 #00#)" + tag + ") (entry " + key2 + tag + "))",
		`("acl" ("entry" ` + key1 + ` (#746167# ("guix" #696D706F7274#))))`, strings.Repeat("(acl ", 100), "(private-key (ecc))",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		keys, err := ParseKeys([]byte(text))
		if err != nil {
			if keys != nil || strings.Contains(err.Error(), "\n") || len(err.Error()) > 500 {
				t.Fatalf("%v, %v", keys, err)
			}
			return
		}
		acl := "(acl"
		for _, key := range keys.All() {
			one, err := ParseKeys([]byte(key))
			if err != nil || one.Len() != 1 || !one.Contains(key) {
				t.Fatalf("%q: %q, %v", key, one.All(), err)
			}
			acl += "(entry" + key + tag + ")"
		}
		again, err := ParseKeys([]byte(acl + ")"))
		if err != nil || strings.Join(again.All(), "") != strings.Join(keys.All(), "") {
			t.Fatalf("%q: %q, %v", acl, again.All(), err)
		}
	})
}

// FuzzParsePrivateKey: an accepted key makes valid signatures and survives printing; errors
// quote no long part of the text.
func FuzzParsePrivateKey(f *testing.F) {
	f.Add(newPrivate(f).Private())
	f.Add(rsaPrivateText(f, 1024))
	for _, d := range []string{"01", "00", "FF", "", "00FF"} {
		f.Add("(private-key (ecc (curve Ed25519) (q #" + q1 + "#) (d #" + d + "#)))")
	}
	f.Fuzz(func(t *testing.T, text string) {
		key, err := ParsePrivateKey([]byte(text))
		if err != nil {
			for i := 0; i+12 <= len(text); i++ {
				if part := text[i : i+12]; !strings.ContainsAny(part, "() ") && strings.Contains(err.Error(), part) {
					t.Fatalf("%q is quoted: %v", part, err)
				}
			}
			return
		}
		again, err := ParsePrivateKey([]byte(key.Private()))
		if err != nil || again.Private() != key.Private() || again.Public() != key.Public() {
			t.Fatalf("%q: %v", key.Private(), err)
		}
		keys, err := ParseKeys([]byte(key.Public()))
		if err != nil {
			t.Fatal(err)
		}
		hash := sha256.Sum256([]byte(text))
		signature, err := key.Sign(hash, "host")
		if err != nil {
			t.Fatal(err)
		}
		if err := Verify(signature, hash, keys); err != nil {
			t.Fatal(err)
		}
	})
}

// FuzzVerify: each signature has one verdict, and the same if it isn't a usual one. One that is
// valid isn't valid for another hash, nor without its key.
func FuzzVerify(f *testing.F) {
	good := newTestSigner(1).sign(signed)
	for _, seed := range []string{
		good, strings.Replace(good, element(good, "r"), "(r #00#)", 1), strings.Replace(good, element(good, "q"), "(q #"+smallOrder[4]+"#)", 1),
		printed(f, good), strings.Replace(printed(f, good), "(r #", "(r #00", 1),
		strings.Replace(good, "rfc6979", "pkcs1", 1), "(signature " + key1 + ")", strings.Repeat("(", 100), "(signature (data (hash a)))",
	} {
		f.Add("1;host;", seed)
	}
	f.Add("2;host;", good)
	f.Add("1;a;b;", good)
	hash := sha256.Sum256([]byte(signed))
	f.Fuzz(func(t *testing.T, start, sexp string) {
		signature := start + base64.StdEncoding.EncodeToString([]byte(sexp))
		err := Verify(signature, hash, nil)
		verdicts := 0
		for _, verdict := range []error{nil, ErrCorrupt, ErrHashMismatch, ErrInvalid, ErrUnknownAlgorithm} {
			if errors.Is(err, verdict) {
				verdicts++
			}
		}
		if verdicts != 1 || err != nil && (strings.Contains(err.Error(), "\n") || len(err.Error()) > 1000) {
			t.Fatalf("%v is %d verdicts", err, verdicts)
		}
		if _, isField := decodeSignature(signature); isField == nil && len(signature) < maxSignatureSize-4 {
			got := Verify(start+base64.StdEncoding.EncodeToString([]byte(asUnusual(sexp))), hash, nil)
			again := Verify(signature, hash, nil) // its key is decoded by now
			if fmt.Sprint(got) != fmt.Sprint(err) || fmt.Sprint(again) != fmt.Sprint(err) {
				t.Fatalf("%v; as an unusual one, %v; again, %v", err, got, again)
			}
		}
		if got := Verify(signature, hash, new(Keys)); !errors.Is(err, ErrCorrupt) && !errors.Is(got, ErrUnauthorized) {
			t.Fatalf("%v; without keys, %v", err, got)
		}
		if got := Verify(signature, sha256.Sum256(nil), nil); err == nil && !errors.Is(got, ErrHashMismatch) {
			t.Fatalf("of another hash: %v", got)
		}
		if err != nil {
			return
		}
		text, err := Key(signature)
		if err != nil {
			t.Fatal(err)
		}
		keys, err := ParseKeys([]byte(text))
		if err != nil {
			t.Fatal(err)
		}
		if err := Verify(signature, hash, keys); err != nil {
			t.Fatal(err)
		}
	})
}
