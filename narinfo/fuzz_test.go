package narinfo

import (
	"crypto/sha256"
	"strings"
	"testing"
)

// FuzzParseStorePath: an accepted text has one form, which names no other path, and errors
// are one line.
func FuzzParseStorePath(f *testing.F) {
	for _, seed := range []string{
		storePrefix + helloHash + "-hello-2.12.1", helloHash + "-hello", helloHash + "-.hidden", helloHash + "-a/b", helloHash + "-a\x00",
		storePrefix + helloHash + "-a/../b", storePrefix, "/gnu/store/" + helloHash, helloHash + "-" + strings.Repeat("a", MaxNameLen+1), "",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		path, err := ParseStorePath(text)
		if err == nil && path.String() != text {
			t.Errorf("%q is read as %q", text, path)
		}
		base, baseErr := ParseBaseName(text)
		if baseErr == nil && (base.BaseName() != text || strings.ContainsAny(text, "/\\%\x00\r\n ") || len(text) > PathHashLen+1+MaxNameLen) {
			t.Errorf("%q is the name of an item: %q", text, base)
		}
		whole, wholeErr := ParseStorePath(storePrefix + text)
		if (baseErr == nil) != (wholeErr == nil) || whole != base {
			t.Errorf("%q: %v, %v; as a path %v, %v", text, base, baseErr, whole, wholeErr)
		}
		// The path of a fixed output accepts the same names.
		output, outputErr := FixedOutputPath(text, [sha256.Size]byte{})
		if outputErr == nil {
			if again, err := ParseStorePath(output.String()); err != nil || again != output {
				t.Errorf("%q: the path of the output is %q: %v", text, output, err)
			}
		}
		for _, err := range []error{err, baseErr, outputErr} {
			if err != nil && (strings.ContainsAny(err.Error(), "\r\n\x1b") || len(err.Error()) > 1000) {
				t.Errorf("%q: the error is %q", text, err)
			}
		}
	})
}

// FuzzParseNarHash: each hash has one form.
func FuzzParseNarHash(f *testing.F) {
	for _, seed := range []string{
		NarHash{}.String(), NarHash{31: 0xff}.String(), "sha256:", "sha512:" + strings.Repeat("0", 52), strings.ToUpper(NarHash{1}.String()),
		"sha256:" + strings.Repeat("z", 52), "sha256:" + strings.Repeat("0", 53), "",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		hash, err := ParseNarHash(text)
		if err == nil && hash.String() != text {
			t.Errorf("%q is read as %q", text, hash)
		}
		if err != nil && (hash != NarHash{} || strings.ContainsAny(err.Error(), "\r\n\x1b")) {
			t.Errorf("%q: %v, the error is %q", text, hash, err)
		}
	})
}
