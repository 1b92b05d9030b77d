package s3

import (
	"net/http"
	"net/url"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/smithy-go/encoding/httpbinding"
)

// TestSignGet: signGet returns the SDK's signature for any request, key and time.
func TestSignGet(t *testing.T) {
	t.Parallel()
	s := new(signer)
	keys := []aws.Credentials{
		{AccessKeyID: "AKIDEXAMPLE", SecretAccessKey: "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"},
		{AccessKeyID: "AKIDEXAMPLE", SecretAccessKey: "another"}, // with the same key ID
		{AccessKeyID: "ASIA", SecretAccessKey: "x", SessionToken: "a/token+of=its own"},
	}
	headers := []map[string]string{
		nil, {"Range": "bytes=1-2"}, {"X-Amz-Checksum-Mode": "ENABLED"}, {"Range": "bytes=7-", "If-Match": `"0123-4"`},
	}
	midnight := time.Date(2026, 11, 26, 23, 59, 59, 0, time.UTC)
	times := []time.Time{midnight, midnight.Add(time.Second), midnight.In(time.FixedZone("", 5*60*60))}
	for _, key := range []string{"nar/lzip/0123-x-1.0", "nar/zstd/a+b c?d=é~_.", "narinfo", "a//b/"} {
		for _, host := range []string{"127.0.0.1:9000", "farm.s3.eu-central-1.amazonaws.com"} {
			for _, header := range headers {
				for _, region := range []string{"us-east-1", "eu-central-1"} {
					for _, at := range times {
						for _, keys := range keys {
							ask := func() *http.Request {
								u := &url.URL{Scheme: "https", Host: host, Path: "/farm/" + key, RawPath: "/farm/" + httpbinding.EscapePath(key, false)}
								r := &http.Request{Method: http.MethodGet, URL: u, Host: host, Header: http.Header{"X-Amz-Content-Sha256": {emptySum}}}
								for name, value := range header {
									r.Header.Set(name, value)
								}
								return r
							}
							want, got := ask(), ask()
							if err := s.SignHTTP(t.Context(), keys, want, emptySum, "s3", region, at); err != nil {
								t.Fatal(err)
							}
							s.signGet(keys, got, region, at)
							if len(want.Header) != len(got.Header) {
								t.Fatalf("%v, but the SDK has %v", got.Header, want.Header)
							}
							for name := range want.Header {
								if want.Header.Get(name) != got.Header.Get(name) {
									t.Fatalf("%s %s, %v, %v: %s is\n%s, but the SDK has\n%s", host, key, header, at, name, got.Header.Get(name), want.Header.Get(name))
								}
							}
						}
					}
				}
			}
		}
	}
}

func BenchmarkSignGet(b *testing.B) {
	keys := aws.Credentials{AccessKeyID: "AKIDEXAMPLE", SecretAccessKey: "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"}
	u := &url.URL{Scheme: "http", Host: "127.0.0.1:9000", Path: "/farm/nar/lzip/0123-x-1.0"}
	ask := func() *http.Request {
		return &http.Request{Method: http.MethodGet, URL: u, Host: u.Host, Header: http.Header{"X-Amz-Content-Sha256": {emptySum}, "X-Amz-Checksum-Mode": {"ENABLED"}}}
	}
	s := new(signer)
	at := time.Now()
	b.Run("ours", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			s.signGet(keys, ask(), "us-east-1", at)
		}
	})
	b.Run("SDK", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if err := s.SignHTTP(b.Context(), keys, ask(), emptySum, "s3", "us-east-1", at); err != nil {
				b.Fatal(err)
			}
		}
	})
}
