package narinfo

import (
	"strings"
	"testing"
)

func TestParseNarHash(t *testing.T) {
	const text = "sha256:0qhasy0w9w9mfv0vacgzymxl4nww8cslyza5x2ci42v7i2b13lyl"
	hash, err := ParseNarHash(text)
	if err != nil || hash.String() != text {
		t.Errorf("ParseNarHash(%q) = %v, %v", text, hash, err)
	}
	for _, bad := range []string{
		"",
		"sha256:",
		text[:len(text)-1],
		text + "0",
		text + " ",
		text[len("sha256:"):],
		"sha512:" + text[len("sha256:"):],
		"SHA256:" + text[len("sha256:"):],
		"sha256:z" + text[len("sha256:")+1:], // bits beyond the 256
		"sha256:" + strings.Repeat("0", 64),  // base16
	} {
		if hash, err := ParseNarHash(bad); err == nil {
			t.Errorf("ParseNarHash(%q) = %v, want an error", bad, hash)
		}
	}
}
