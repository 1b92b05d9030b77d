package s3

import (
	"io/fs"
	"strings"
	"testing"
)

func TestParse(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]location{
		"s3://bucket":                        {bucket: "bucket"},
		"s3://bucket/":                       {bucket: "bucket"},
		"s3://bucket/a/b":                    {bucket: "bucket", prefix: "a/b"},
		"s3://bucket/a/b/":                   {bucket: "bucket", prefix: "a/b"},
		"s3://bucket/a%20b%3F":               {bucket: "bucket", prefix: "a b?"},
		"s3://Old_Bucket.x?region=eu-west-3": {bucket: "Old_Bucket.x", region: "eu-west-3"},
		"s3://bucket/p?endpoint=https://s3.example.org":                   {bucket: "bucket", prefix: "p", endpoint: "https://s3.example.org", pathStyle: true},
		"s3://bucket/p?endpoint=http%3A%2F%2F127.0.0.1%3A9000%2F":         {bucket: "bucket", prefix: "p", endpoint: "http://127.0.0.1:9000", pathStyle: true},
		"s3://bucket?endpoint=https://s3.example.org/s3&path-style=false": {bucket: "bucket", endpoint: "https://s3.example.org/s3"},
		"s3://bucket?checksum=crc32":                                      {bucket: "bucket", checksum: crc32Checksum},
		"s3://bucket?path-style=true":                                     {bucket: "bucket", pathStyle: true},
		"s3://bucket?credentials=/etc/nar-herder/s3&profile=nars":         {bucket: "bucket", credentialsFile: "/etc/nar-herder/s3", profile: "nars"},
	} {
		got, err := parse(text)
		if err != nil || got.bucket != want.bucket || got.prefix != want.prefix || got.endpoint != want.endpoint || got.region != want.region ||
			got.pathStyle != want.pathStyle || got.checksum != want.checksum || got.credentialsFile != want.credentialsFile || got.profile != want.profile {
			t.Errorf("%s: %+v, %v; want %+v", text, got, err, want)
		}
	}
	for text, want := range map[string]string{
		"":                                    "s3://",
		"/var/lib":                            "s3://",
		"s3:":                                 "bucket",
		"s3:bucket":                           "bucket",
		"s3://":                               "bucket",
		"s3:///prefix":                        "bucket",
		"s3://?region=x":                      "bucket",
		"s3://bucket:9000/x":                  "bucket:9000",
		"s3://-bucket":                        "-bucket",
		"s3://bucket/a/../b":                  "prefix",
		"s3://bucket/a//b":                    "prefix",
		"s3://bucket/.":                       "prefix",
		"s3://bucket#x":                       "#",
		"s3://bucket/%zz":                     "valid URL",
		"s3://bucket?endpont=x":               "endpont",
		"s3://bucket?region":                  "region",
		"s3://bucket?region=":                 "region",
		"s3://bucket?region=a&region=b":       "region",
		"s3://bucket?a;b":                     "NAME=VALUE",
		"s3://bucket?path-style=perhaps":      "perhaps",
		"s3://bucket?endpoint=s3.example.org": "endpoint",
		"s3://bucket?checksum=md5":            "crc32c, crc32 or none",
		"s3://bucket?endpoint=ftp://s3.example.org":              "endpoint",
		"s3://bucket?endpoint=https://":                          "endpoint",
		"s3://bucket?endpoint=https://h/?x=y":                    "endpoint",
		"s3://KEY:hush-hush@bucket/x":                            "keys",
		"s3://bucket/x?endpoint=https://KEY:hush-hush@host":      "keys",
		"s3://bucket/x?endpoint=https://KEY:hush-hush%25zz@host": "endpoint",
		"s3://KEY:hush-hush@buck et/%zz":                         "URL",
	} {
		_, err := parse(text)
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "hush") || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v, want an error about %q", text, err, want)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add("s3://bucket/prefix?endpoint=https://s3.example.org&region=r&path-style=false")
	f.Add("s3://a:b@c/..")
	f.Fuzz(func(t *testing.T, text string) {
		l, err := parse(text)
		if err != nil {
			return
		}
		if l.prefix != "" && !fs.ValidPath(l.prefix) || !bucketName.MatchString(l.bucket) || strings.Contains(l.endpoint, "@") {
			t.Errorf("%q is taken as %+v", text, l)
		}
	})
}

// TestOpenSaysNoKeys: what names credentials that are not there is refused, and
// what has none at all says so at the first request, not "not there".
func TestOpenWithoutKeys(t *testing.T) {
	for _, name := range []string{"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE", "HOME"} {
		t.Setenv(name, "")
	}
	t.Setenv("AWS_EC2_METADATA_DISABLED", "true")
	missing := t.TempDir() + "/missing"
	if _, err := Open(t.Context(), "s3://bucket?credentials="+missing, Options{}); err == nil || !strings.Contains(err.Error(), missing) {
		t.Errorf("a missing file: %v", err)
	}
	b := open(t, "s3://bucket?endpoint=http://127.0.0.1:1", Options{})
	_, err := b.Stat(t.Context(), "nar/x")
	wantFault(t, "Stat without credentials", err, "no credentials found", "credentials=FILE")
}
