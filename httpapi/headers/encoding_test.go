package headers

import (
	"strings"
	"testing"
)

func TestPrefersEncoded(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		header string // lines by "\n"
		want   bool
	}{
		{"", false},
		{"zstd", true},
		{"ZStd", true},
		{"gzip, deflate, br, zstd", true},
		{"gzip,zstd;q=0.001", true},
		{"gzip\nzstd", true},
		{" zstd\t; q=1.000 , ", true},
		{"zstd;Q=1", true},
		{"zstd;q=1.", true},
		{"zstd, identity;q=0.5", true},
		{"identity, zstd", true},
		{"zstd;q=0.5, *;q=0", true},
		{"identity;q=0, zstd;q=0.1", true},

		{"gzip", false},
		{"identity", false},
		{"*", false}, // "*" doesn't name the coding
		{"zstd;q=0", false},
		{"zstd;q=0.000, *", false},
		{"zstd, zstd;q=0", false},
		{"identity, zstd;q=0.9", false},
		{"identity;q=0.6\nzstd;q=0.599", false},
		{"xzstd", false},
		{"zstd22", false},
		{"zst d", false},
		{"zstd;q=2", false},
		{"zstd;q=1.001", false},
		{"zstd;q=-1", false},
		{"zstd;q=0.0001", false},
		{"zstd;q=.5", false},
		{"zstd;q=1e0", false},
		{"zstd;q", false},
		{"zstd;level=3", false},
		{"zstd;q=1;q=1", false},
		{";q=1", false},
		{",,", false},
	} {
		var headers [][]byte
		for line := range strings.SplitSeq(test.header, "\n") {
			headers = append(headers, []byte(line))
		}
		if got := PrefersEncoded(headers, "zstd"); got != test.want {
			t.Errorf("%q: %v, want %v", test.header, got, test.want)
		}
	}
}

// FuzzPrefersEncoded: an element of another coding doesn't affect the result, whatever
// precedes it.
func FuzzPrefersEncoded(f *testing.F) {
	for _, seed := range []string{"zstd", "identity;q=0.5, zstd;q=0.4", "a;b;c,,*;q=1", "zstd;q=0.9999", "\x00", "zstd\t;q=1"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, header string) {
		got := PrefersEncoded([][]byte{[]byte(header)}, "zstd")
		if got && !strings.Contains(strings.ToLower(header), "zstd") {
			t.Errorf("%q does not name it", header)
		}
		if again := PrefersEncoded([][]byte{[]byte("gzip;q=1"), []byte(header + ",br;q=0")}, "zstd"); again != got {
			t.Errorf("%q: %v, and with others beside it %v", header, got, again)
		}
		if PrefersEncoded([][]byte{[]byte(header), []byte("zstd;q=0")}, "zstd") {
			t.Errorf("%q: it is refused, and preferred", header)
		}
		for element := range strings.SplitSeq(header, ",") {
			if _, weight, ok := parseCoding(element); ok && (weight < 0 || weight > 1000) {
				t.Errorf("%q has the weight %d", element, weight)
			}
		}
	})
}
