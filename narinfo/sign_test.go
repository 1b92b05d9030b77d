package narinfo

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"regexp"
	"strings"
	"testing"

	"nar-herder/narinfo/signing"
)

func newKey(t testing.TB) (*signing.PrivateKey, *signing.Keys) {
	t.Helper()
	key, err := signing.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	keys, err := signing.ParseKeys([]byte(key.Public()))
	if err != nil {
		t.Fatal(err)
	}
	return key, keys
}

var signatureLine = regexp.MustCompile(`(?m)^Signature: .*\n`)

// Narinfos of guix publish that lost their signature, or get another, differ from the original
// by its value only.
func TestSignPublished(t *testing.T) {
	key, keys := newKey(t)
	for _, pattern := range []string{"../testdata/published*/*.narinfo", "../testdata/cases/ok-*.narinfo", "../testdata/production/*.narinfo"} {
		forEachNarinfo(t, pattern, func(t *testing.T, text []byte) {
			unsigned := signatureLine.ReplaceAll(text, nil)
			for _, before := range [][]byte{text, unsigned} {
				n := mustParse(t, before)
				after, err := n.Sign(key, "host.example")
				if err != nil {
					t.Fatal(err)
				}
				signed := mustParse(t, after)
				if err := signed.CheckSignature(keys); err != nil {
					t.Error(err)
				}
				if got, err := signed.SigningKey(); err != nil || got != key.Public() {
					t.Errorf("the key is %q, %v", got, err)
				}
				if !strings.HasPrefix(signed.Signature(), "1;host.example;") {
					t.Errorf("the signature is %s", signed.Signature())
				}
				if !bytes.Equal(signatureLine.ReplaceAll(after, nil), unsigned) || len(signatureLine.FindAll(after, -1)) != 1 {
					t.Errorf("got %q from %q", after, before)
				}
				again, err := signed.Sign(key, "host.example")
				if err != nil || !bytes.Equal(again, after) {
					t.Errorf("signed again: %q, %v; before: %q", again, err, after)
				}
			}
			again, err := mustParse(t, unsigned).Sign(key, "h")
			if err != nil {
				t.Fatal(err)
			}
			if at := signatureLine.FindIndex(again)[0]; strings.Contains(t.Name(), "published") && at != signatureLine.FindIndex(text)[0] {
				t.Errorf("the signature is at %d, guix publish wrote it at %d", at, signatureLine.FindIndex(text)[0])
			}
		})
	}
}

func TestSignPlace(t *testing.T) {
	key, keys := newKey(t)
	const (
		storePath  = "StorePath: /gnu/store/" + item + "\n"
		hash       = "NarHash: " + narHash + "\n"
		references = "References: " + item + "\n"
		required   = storePath + hash + references
		url        = "URL: nar/" + item + "\n"
		none       = "Compression: none\n"
		old        = "Signature: 1;h;eA==\n"
		mark       = "<>" // where the signature must be
	)
	for _, test := range []struct{ name, before, after string }{
		{"blocks below", required + url + none, required + mark + url + none},
		{"no final newline", required + url + strings.TrimSuffix(none, "\n"), required + mark + url + strings.TrimSuffix(none, "\n")},
		{"blocks above", storePath + url + none + hash + references, storePath + url + none + hash + references + mark},
		{"blocks above, no final newline", url + none + storePath + hash + strings.TrimSuffix(references, "\n"), url + none + required + mark},
		{"hash of the file", required + url + none + "FileSize: 1\nFileHash: x\n", required + mark + url + none + "FileSize: 1\nFileHash: x\n"},
		{"unknown field below", required + url + none + "X: y\n", required + url + none + "X: y\n" + mark},
		{"unknown field between", required + url + "X: y\n+ z\n" + none, required + url + "X: y\n+ z\n" + mark + none},
		{"continued URL", required + "URL: nar\n+ /x\n" + none, required + mark + "URL: nar\n+ /x\n" + none},
		{"comments", "# a\n" + required + "# b\n" + url + "# c\n" + none, "# a\n" + required + mark + "# b\n" + url + "# c\n" + none},
		{"empty lines above", "\n\n" + required + url + none, "\n\n" + required + mark + url + none},
		{"text below the record", url + none + required + "\nSignature: x\n", url + none + required + mark + "\nSignature: x\n"},
		{"old signature", required + old + url + none, required + mark + url + none},
		{"empty signature", required + "Signature:\n" + url + none, required + mark + url + none},
		{"old signature last", url + none + required + strings.TrimSuffix(old, "\n"), url + none + required + mark},
		{"old signature below the blocks", required + url + none + old + "X: y\n", required + url + none + mark + "X: y\n"},
		{"continued signature", required + "Signature: 1;h;\n# c\n+ eA==\n# d\n" + url + none, required + mark + "# d\n" + url + none},
		{"mark below", required + url + none + "X-Signature: x\n" + old, ""},
		{"mark in a comment above", "# Signature: x\n" + required + url + none, ""},
		{"mark in a field above", required + "X-Signature: x\n" + url + none, ""},
		{"mark in a comment below", required + url + none + "# Signature: x\n", required + mark + url + none + "# Signature: x\n"},
		{"required field below", storePath + hash + old + references + url + none, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			n := mustParse(t, []byte(test.before))
			got, err := n.Sign(key, "h")
			if string(n.Text) != test.before {
				t.Errorf("the text has changed to %q", n.Text)
			}
			if test.after == "" {
				if err == nil || !strings.Contains(err.Error(), "can't be signed") || strings.Contains(err.Error(), "\n") {
					t.Errorf("got %q, %v", got, err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if err := mustParse(t, got).CheckSignature(keys); err != nil {
				t.Error(err)
			}
			where := regexp.MustCompile(`Signature: 1;h;[A-Za-z0-9+/=]{100,}\n`)
			if found := where.ReplaceAllString(string(got), mark); found != test.after {
				t.Errorf("got %q, want %q", found, test.after)
			}
		})
	}
}

func TestSignErrors(t *testing.T) {
	key, _ := newKey(t)
	n := mustParse(t, []byte(signed+block))
	for _, host := range []string{"a;b", "a\nURL: x", "a b"} {
		if got, err := n.Sign(key, host); err == nil || !strings.Contains(err.Error(), "host name") {
			t.Errorf("%q: got %q, %v", host, got, err)
		}
	}
	// A signature makes the text longer.
	n = mustParse(t, []byte("#"+strings.Repeat("x", MaxSize-2-len(signed+block))+"\n"+signed+block))
	if got, err := n.Sign(key, "h"); err == nil || !strings.Contains(err.Error(), "too large") {
		t.Errorf("got %d bytes, %v", len(got), err)
	}
}

// The largest narinfos can be signed and checked.
func TestSignLargest(t *testing.T) {
	key, keys := newKey(t)
	for name, text := range map[string]string{
		"references": strings.TrimSuffix(signed, "\n") + strings.Repeat(" "+item, 32_000) + "\n" + block,
		"comment":    signed + block + "#" + strings.Repeat("x", MaxSize-4096),
		"fields":     signed + strings.Repeat("x:y\n", (MaxSize-4096)/4) + block,
		"continued":  signed + strings.Repeat("x:y\n+z\n", (MaxSize-4096)/7) + block,
	} {
		got, err := mustParse(t, []byte(text)).Sign(key, "h")
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if err := mustParse(t, got).CheckSignature(keys); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// FuzzSign: a signed text is valid, differs by one field only, and can be signed again.
func FuzzSign(f *testing.F) {
	key, keys := newKey(f)
	for _, seed := range []string{
		signed + block, block + signed, signed + "Signature: x\n" + block, signed + "Signature:\n# c\n+ x\n+y\n" + block, "# Signature: x\n" + signed + block,
		signed + block + "\nSignature: x", "\n" + signed + "X: y\n+z\n" + strings.TrimSuffix(block, "\n"), block + strings.TrimSuffix(signed, "\n"),
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		n, err := Parse([]byte(text))
		if err != nil {
			return
		}
		signed, err := n.Sign(key, "h")
		if err != nil {
			if !strings.Contains(err.Error(), "can't be signed") {
				t.Fatal(err)
			}
			return
		}
		again, err := Parse(signed)
		if err != nil {
			t.Fatal(err)
		}
		if err := again.CheckSignature(keys); err != nil {
			t.Fatalf("%q: %v", signed, err)
		}
		if fmt.Sprint(again.StorePath, again.NarHash, again.NarSize, again.References, again.Deriver, again.System, again.Files) !=
			fmt.Sprint(n.StorePath, n.NarHash, n.NarSize, n.References, n.Deriver, n.System, n.Files) || again.CanAppend() != n.CanAppend() {
			t.Fatalf("%q became %q", text, signed)
		}
		if n.Signature() != "" && !bytes.Equal(n.Signed(), again.Signed()) {
			t.Fatalf("the signed bytes of %q changed: %q", text, signed)
		}
		if same, err := again.Sign(key, "h"); err != nil || !bytes.Equal(same, signed) {
			t.Fatalf("%q signed again is %q, %v", signed, same, err)
		}
	})
}
