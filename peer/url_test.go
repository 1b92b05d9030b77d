package peer

import (
	"strings"
	"testing"
)

func TestParseURL(t *testing.T) {
	t.Parallel()
	for _, text := range []string{
		"http://x", "https://x.example", "http://x.example:8080/", "https://x.example/guix/mirror", "http://[::1]:80",
		"https://user:secret@x.example/guix", "http://x.example/a%2Cb",
	} {
		if got, err := ParseURL(text); err != nil || got.String() != text {
			t.Errorf("%q: %v, %v", text, got, err)
		}
	}
	for text, want := range map[string]string{
		"": "http://HOST", "x": "http://HOST", "//x": "http://HOST", "ftp://x": "http://HOST", "http:": "http://HOST", "http:x": "http://HOST",
		"http://": "http://HOST", "http:///path": "http://HOST", "http://:80": "http://HOST", "http://[": "http://HOST", "http://user@": "http://HOST",
		"http://x:y": "http://HOST", "http://x\n": "http://HOST", "https://x y/": "http://HOST",
		"http://x?": "query", "http://x/?a=b": "query", "http://x/#top": "fragment", "http://x?a#top": "query",
	} {
		got, err := ParseURL(text)
		if err == nil {
			t.Errorf("%q is taken, as %s", text, got)
		} else if message := err.Error(); !strings.Contains(message, want) || strings.Contains(message, "\n") {
			t.Errorf("%q: %v, want something of %q", text, err, want)
		}
	}
	for _, text := range []string{"user:hunter2@host", "http://user:it's-hunter2@host/?x", "http://user:a hunter2@host", "hunter2@host", `http://u:"hunter2@host`, "http://u:x/hunter2@"} {
		if _, err := ParseURL(text); err == nil || strings.Contains(err.Error(), "hunter2") || !strings.Contains(err.Error(), "xxxxx@") {
			t.Errorf("%q: %v", text, err)
		}
	}
}
