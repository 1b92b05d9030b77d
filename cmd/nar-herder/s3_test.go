package main

import (
	"fmt"
	"net/http"
	"strings"
	"syscall"
	"testing"

	"nar-herder/internal/s3server"
)

// TestBucket keeps nars in a bucket: all that is done with a directory goes.
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

	// A server that is away is no nar that is not there.
	bucket.Stop()
	if got := get(t, address, "/nar/lzip/"+entropy); got.StatusCode < 500 {
		t.Errorf("nar, while the bucket is away: %s", got.Status)
	}
	if err := bucket.Start(); err != nil {
		t.Fatal(err)
	}
	until(t, "nars are back", func() bool { return get(t, address, "/nar/lzip/"+entropy).StatusCode == 200 })

	succeed(t, p.args("remove", entropy)...)
	until(t, "it is gone", func() bool { return get(t, address, "/nar/lzip/"+entropy).StatusCode == 404 })
	s.stop(t, syscall.SIGTERM)
	for _, secret := range []string{s3server.SecretKey, s3server.AccessKey} {
		if strings.Contains(s.err.String(), secret) {
			t.Error("the log has a key")
		}
	}
	p.check(t).want(t, 0)
}
