package redact

import (
	"net/url"
	"testing"
)

func TestText(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"": "", "nothing": "nothing", "a@b": "a@b", "https://x.example/a": "https://x.example/a",
		"ask https://user:secret@x.example/a: no":           "ask https://xxxxx@x.example/a: no",
		`"ftp://token@x" and "http://a:b@y:80/"`:            `"ftp://xxxxx@x" and "http://xxxxx@y:80/"`,
		"http://user:p@ss/w?rd#@x.example, and an @":        "http://xxxxx@x.example, and an @",
		"stored-on=http://u:p@x,stored-on=https://v:q@y":    "stored-on=http://xxxxx@y",
		"S3://KEY:SECRET@bucket":                            "S3://xxxxx@bucket",
		"http:/user:secret@x":                               "http:/xxxxx@x",
		"http://user:it's@host/":                            "http://xxxxx@host/",
		`Get "http://u:it's@x": no; "http://v:<w>\"@y": no`: `Get "http://xxxxx@x": no; "http://xxxxx@y": no`,
		// Without a scheme.
		"user:hunter2@host":                       "xxxxx@host",
		`--mirror: "user:it's@host" is not valid`: `--mirror: "xxxxx@host" is not valid`,
		"stored-on=user:a@b@host":                 "stored-on=xxxxx@host",
		// Parameters.
		"http://x/?X-Amz-Credential=a%2Fb&X-Amz-Date=c&X-Amz-Signature=d": "http://x/?X-Amz-Credential=xxxxx&X-Amz-Date=c&X-Amz-Signature=xxxxx",
		`Get "https://x/?a=b&sig=c'd": no`:                                `Get "https://x/?a=b&sig=xxxxx": no`,
		"s3://b?access_key=a&credentials=/c&design=d&secret=e":            "s3://b?access_key=xxxxx&credentials=/c&design=d&secret=xxxxx",
		"(see http://x/?token=a\"b), and more":                            "(see http://x/?token=xxxxx), and more",
		"u=http%3A%2F%2Fu%3Ait's%40x&v=http%3a%2f%2fy@z":                  "u=http%3A%2F%2Fxxxxx%40x&v=http%3a%2f%2fxxxxx@z",
		// Without secrets.
		"dial tcp [::1]:80: refused, foo@1.2:out": "dial tcp [::1]:80: refused, foo@1.2:out",
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

func TestAddress(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"": "", "x.example": "x.example", "http://x/": "http://x/",
		"http://user:it's a@b@host/": "http://xxxxx@host/", "user:hunter2@host": "xxxxx@host", "token@host": "xxxxx@host",
		"http:user:secret@host": "xxxxx@host", "//user:secret@host": "xxxxx@host", "http:/a b@x": "http:/xxxxx@x", "http://x/?token=y": "http://x/?token=xxxxx",
	} {
		if got := Address(text); got != want {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
	}
}
