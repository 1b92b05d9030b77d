package main

import (
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"nar-herder/internal/s3server"
)

// TestBucket does with a bucket everything that a directory supports.
func TestBucket(t *testing.T) {
	t.Parallel()
	bucket := s3server.New(t)
	p := newPlace(t)
	p.storage = bucket.URL("nars/of/gnu")
	out := succeed(t, p.args("import", copyCorpus(t, "published"))...)
	if !strings.HasPrefix(out, "13 added; ") {
		t.Errorf("import: %q", out)
	}
	s := p.serve(t)
	address := s.addresses[0]
	if got := get(t, address, "/"+narinfoName(greeting)); got.StatusCode != 200 || got.body != read(t, testdata, "published", narinfoName(greeting)) {
		t.Errorf("narinfo: %s", got.Status)
	}
	for _, name := range []string{greeting, entropy} {
		target, want := "/nar/lzip/"+name, read(t, testdata, "published/nar/lzip", name)
		if got := get(t, address, target); got.StatusCode != 200 || got.body != want || got.Header.Get("Etag") == "" {
			t.Errorf("%s: %s, %d bytes, want %d", target, got.Status, len(got.body), len(want))
		}
		if got := request(t, address, http.MethodHead, target); got.StatusCode != 200 || got.ContentLength != int64(len(want)) {
			t.Errorf("HEAD %s: %s, length %d", target, got.Status, got.ContentLength)
		}
		first, last := len(want)/3, len(want)/2
		got := request(t, address, http.MethodGet, target, "Range", fmt.Sprintf("bytes=%d-%d", first, last))
		if got.StatusCode != 206 || got.body != want[first:last+1] {
			t.Errorf("range of %s: %s, %d bytes, want %d", target, got.Status, len(got.body), last-first+1)
		}
	}
	p.check(t, "--verify").want(t, 0)

	// An unreachable server doesn't make a nar 404.
	bucket.Stop()
	if got := get(t, address, "/nar/lzip/"+entropy); got.StatusCode < 500 {
		t.Errorf("nar, while the bucket is down: %s", got.Status)
	}
	if err := bucket.Start(); err != nil {
		t.Fatal(err)
	}
	until(t, "nars are served again", func() bool { return get(t, address, "/nar/lzip/"+entropy).StatusCode == 200 })

	succeed(t, p.args("remove", "--now", entropy)...)
	until(t, "it is deleted", func() bool { return get(t, address, "/nar/lzip/"+entropy).StatusCode == 404 })
	s.stop(t, syscall.SIGTERM)
	for _, secret := range []string{s3server.SecretKey, s3server.AccessKey} {
		if strings.Contains(s.err.String(), secret) {
			t.Error("the log has a key")
		}
	}
	p.check(t).want(t, 0)
}

// TestBucketUnfinished: a server removes the unfinished uploads of killed processes, also
// with a cache in front of the bucket, but no other uploads.
func TestBucketUnfinished(t *testing.T) {
	t.Parallel()
	bucket := s3server.New(t)
	p := newPlace(t)
	p.storage = bucket.URL("nars/of/gnu")
	succeed(t, p.args("import", copyCorpus(t, "published"))...)
	begin := func(key string) {
		t.Helper()
		if _, err := bucket.Client.CreateMultipartUpload(t.Context(), &s3.CreateMultipartUploadInput{Bucket: aws.String("nars"), Key: &key}); err != nil {
			t.Fatal(err)
		}
	}
	unfinished := func() (keys []string) {
		t.Helper()
		listed, err := bucket.Client.ListMultipartUploads(t.Context(), &s3.ListMultipartUploadsInput{Bucket: aws.String("nars")})
		if err != nil {
			t.Fatal(err)
		}
		for _, upload := range listed.Uploads {
			keys = append(keys, *upload.Key)
		}
		slices.Sort(keys)
		return keys
	}
	begin("of/gnu/nar/old")
	begin("of/others/nar/old")
	if err := bucket.AgeUploads("nars", 25*time.Hour, true); errors.Is(err, errors.ErrUnsupported) {
		t.Skip("this server keeps uploads in a form of its own")
	} else if err != nil {
		t.Fatal(err)
	}
	begin("of/gnu/nar/young")
	s := p.serve(t, "--storage-cache="+t.TempDir())
	until(t, "the old upload is removed", func() bool {
		return slices.Equal(unfinished(), []string{"of/gnu/nar/young", "of/others/nar/old"})
	})
	// The bucket removes it before the server has the answer.
	until(t, "the log reports it", func() bool { return strings.Contains(s.err.String(), "removed an unfinished upload") })
	s.stop(t, syscall.SIGTERM)
}

// TestBucketOfProviders: the program stores nars at each provider, and logs once which
// checksum protects uploads.
func TestBucketOfProviders(t *testing.T) {
	t.Parallel()
	bucket := s3server.New(t)
	for provider, want := range map[s3server.Provider]string{s3server.Backblaze: "none", s3server.Cloudflare: "crc32", s3server.Google: "crc32c"} {
		front := bucket.Front(t, provider)
		p := newPlace(t)
		p.storage = front.URL("nars/" + want)
		out := succeed(t, p.args("import", copyCorpus(t, "published"))...)
		if !strings.HasPrefix(out, "13 added; ") {
			t.Errorf("%s: import: %q", provider, out)
		}
		p.check(t, "--verify").want(t, 0)
		s := p.serve(t)
		if got := get(t, s.addresses[0], "/nar/lzip/"+entropy); got.StatusCode != 200 || got.body != read(t, testdata, "published/nar/lzip", entropy) {
			t.Errorf("%s: nar: %s, %d bytes", provider, got.Status, len(got.body))
		}
		s.stop(t, syscall.SIGTERM)
		succeed(t, p.args("remove", "--now", entropy)...)
	}
}
