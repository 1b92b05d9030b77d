package ahead

import (
	"slices"
	"strings"
	"testing"

	"nar-herder/narinfo"
)

func TestNarinfos(t *testing.T) {
	t.Parallel()
	const one, other = "f7d5xvkf9s1mdnclid1kqndn30nim936", "whkpn6a94flfghyx6i6fzbvrgc3wjkk7"
	for text, want := range map[string]string{
		"": "", "\r\n": "", "GET /": "",
		"GET /" + one + ".narinfo HTTP/1.1\r\nHost: x\r\n\r\nGET /" + other + ".narinfo HTTP/1.0\r\n": one + " " + other,
		"GET /" + one + ".narinfo HTTP/1.1\nGET /" + one + ".narinfo HTTP/1.1":                        one + " " + one,
		"HEAD /" + one + ".narinfo HTTP/1.1\r\n":                                                      "",
		"GET /" + one + ".narinfo/info HTTP/1.1\r\n":                                                  "",
		"GET /" + one + ".narinfo HTTP/2.0\r\n":                                                       "",
		"GET /e" + one[1:] + ".narinfo HTTP/1.1\r\n":                                                  "",
		"X: GET /" + one + ".narinfo HTTP/1.1\r\n":                                                    "",
	} {
		var got []string
		for _, hash := range Narinfos([]byte(text)) {
			got = append(got, hash.String())
		}
		if !slices.Equal(got, strings.Fields(want)) {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
	}
}

func FuzzNarinfos(f *testing.F) {
	f.Add([]byte("GET /f7d5xvkf9s1mdnclid1kqndn30nim936.narinfo HTTP/1.1\r\nHost: x\r\n\r\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		if hashes := Narinfos(text); len(hashes) > len(text)/narinfo.PathHashLen {
			t.Errorf("%d items in %d bytes", len(hashes), len(text))
		}
	})
}
