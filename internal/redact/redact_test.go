package redact

import (
	"net/url"
	"testing"
)

func TestText(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"": "", "nothing": "nothing", "a@b": "a@b", "https://x.example/a": "https://x.example/a",
		"ask https://user:secret@x.example/a: no":        "ask https://xxxxx@x.example/a: no",
		`"ftp://token@x" and "http://a:b@y:80/"`:         `"ftp://xxxxx@x" and "http://xxxxx@y:80/"`,
		"http://user:p@ss/w?rd#@x.example, and an @":     "http://xxxxx@x.example, and an @",
		"stored-on=http://u:p@x,stored-on=https://v:q@y": "stored-on=http://xxxxx@y",
		"S3://KEY:SECRET@bucket":                         "S3://xxxxx@bucket",
		"http:/user:secret@x":                            "http:/xxxxx@x",
	} {
		if got := Text(text); got != want {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
	}
}

func TestURL(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"https://user:secret@x.example:8080/a%2Cb?token=secret": "https://x.example:8080/a%2Cb", "http://token@x": "http://x", "http://x/?": "http://x/",
	} {
		u, err := url.Parse(text)
		if err != nil {
			t.Fatal(err)
		}
		if got := URL(u); got != want || u.String() != text {
			t.Errorf("%q: %q, want %q, leaving %q", text, got, want, u)
		}
	}
}
