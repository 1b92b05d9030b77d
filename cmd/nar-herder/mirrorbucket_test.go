package main

import (
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"nar-herder/internal/s3server"
)

// TestMirrorToBucket: a mirror stores nars in its bucket, also after it was killed, and
// then removes them, as the source has them.
func TestMirrorToBucket(t *testing.T) {
	t.Parallel()
	const count = 40
	p := newPlace(t)
	source, texts, targets := generated(t, count)
	p.imports(t, source)
	from := p.serve(t, "--log-level=INFO", "--database-dump-interval=1s")

	objects := s3server.New(t)
	q := newPlace(t)
	q.storage = objects.URL("mirror/nars")
	stored := func() (names []string) {
		t.Helper()
		listed, err := objects.Client.ListObjectsV2(t.Context(), &s3.ListObjectsV2Input{Bucket: aws.String("mirror"), Prefix: aws.String("nars/nar/")})
		if err != nil {
			t.Fatal(err)
		}
		for _, object := range listed.Contents {
			names = append(names, *object.Key)
		}
		return names
	}
	options := []string{"--log-level=INFO", "--storage-check-interval=1s", "--mirror=http://" + from.addresses[0]}
	mirror := q.serveProcess(t, options...)
	until(t, "the first nars", func() bool { return len(stored()) > 3 })
	mirror.kill(t)
	mirror = q.serve(t, options...)
	until(t, "all nars", func() bool {
		return len(stored()) == count && metric(t, mirror.addresses[0], "narherder_stored_nars") == "40"
	})
	if spooled, err := os.ReadDir(q.database + ".spool"); err != nil || len(spooled) > 0 {
		t.Errorf("left in the spool: %v, %v", spooled, err)
	}
	mirror.stop(t, syscall.SIGTERM)
	if r := runProgram(t, q.args("check", "--verify")...); r.status != 0 || !strings.Contains(r.out, "40 files verified") {
		t.Errorf("check: %+v", r)
	}

	mirror = q.serve(t, append(options, "--mirror-nars=none", "--storage-limit=100K", "--storage-nar-removal-criteria=stored-on=http://"+from.addresses[0])...)
	until(t, "removals", func() bool { return len(stored()) < 5 })
	for _, target := range targets {
		_, name := narOf(t, texts[target])
		if got := get(t, mirror.addresses[0], "/"+name); got.StatusCode != 200 || got.body != read(t, source, name) {
			t.Errorf("%s: %s, %d bytes", name, got.Status, len(got.body))
		}
	}
	mirror.stop(t, syscall.SIGTERM)
	if r := runProgram(t, q.args("check")...); r.status != 0 {
		t.Errorf("check: %+v", r)
	}
}
