package s3

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
)

// TestListPages: List joins several pages, without duplicates.
func TestListPages(t *testing.T) {
	t.Parallel()
	var way faulty
	options := quick(&way)
	options.pageKeys = 3
	b := open(t, place(t), options)
	want := []string{}
	for i := range 10 {
		name := fmt.Sprintf("nar/%d + %%2B & ü/x", i)
		put(t, b, name, []byte("x"))
		want = append(want, name)
	}
	uploads := 7
	if !listsUploads {
		uploads = 0
	}
	for i := range uploads {
		staged, err := b.stageUpload(t.Context(), "nar/pending +", "token", strings.NewReader("x"), 1)
		if err != nil {
			t.Fatal(i, err)
		}
		defer staged.abort()
		want = append(want, temporaryName(staged.id, "nar/pending +"))
	}
	slices.Sort(want)
	got := []string{}
	for _, info := range list(t, b) {
		got = append(got, info.Name)
		if info.Size != 1 || info.Usage != 1 || info.Temporary != strings.HasPrefix(info.Name, uploadFolder) || info.ModTime.Nanosecond() != 0 {
			t.Errorf("%+v", info)
		}
	}
	if slices.Sort(got); !slices.Equal(got, want) {
		t.Errorf("List yields %q, want %q", got, want)
	}
	// A failure of a later page is an error, not the end of the list.
	requests := 0
	way.set(func(r *http.Request) (*http.Response, error) {
		if requests++; requests > 2 {
			return always(403, "AccessDenied")(r)
		}
		return nil, nil
	})
	n := 0
	var failure error
	for info, err := range b.List(t.Context()) {
		if failure = err; err == nil {
			n++
		} else if info.Name != "" {
			t.Errorf("the error has name %q, want none", info.Name)
		}
	}
	wantFault(t, "List", failure, "AccessDenied")
	if n != 6 {
		t.Errorf("%d names before the error, want 6", n)
	}
	// Without permission to list uploads, List still returns all objects.
	way.set(func(r *http.Request) (*http.Response, error) {
		if r.URL.Query().Has("uploads") {
			return always(403, "AccessDenied")(r)
		}
		return nil, nil
	})
	n = 0
	for info, err := range b.List(t.Context()) {
		if err == nil {
			n++
		} else if info.Name == "" {
			t.Errorf("an error without a name: %v", err)
		} else {
			wantFault(t, "List of uploads", err, "AccessDenied", "unfinished")
		}
	}
	if n != 10 {
		t.Errorf("%d names without permission to list uploads, want 10", n)
	}
}

// TestListOthers: List skips keys with other prefixes, and invalid names.
func TestListOthers(t *testing.T) {
	t.Parallel()
	url := place(t)
	b := open(t, url, Options{})
	neighbour := open(t, strings.Replace(url, "?", "-and-more?", 1), Options{})
	put(t, b, "nar/x", []byte("x"))
	put(t, neighbour, "nar/y", []byte("y"))
	pending, err := neighbour.stageUpload(t.Context(), "nar/z", "token", strings.NewReader("z"), 1)
	if err != nil {
		t.Fatal(err)
	}
	defer pending.abort()
	for _, key := range []string{"marker/", "nar/marker/"} {
		if _, err := server.Client.PutObject(t.Context(), &s3.PutObjectInput{Bucket: &b.bucket, Key: aws.String(b.key(key)), Body: bytes.NewReader(nil)}); err != nil {
			t.Fatal(err)
		}
	}
	if infos := list(t, b); len(infos) != 1 || infos[0].Name != "nar/x" {
		t.Errorf("List yields %+v", infos)
	}
	if _, err := b.Stat(t.Context(), "nar/marker"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Stat of a marked directory: %v", err)
	}
}

// TestListUnfinished: ListUnfinished returns the uploads below the prefix without a part since
// the given time.
func TestListUnfinished(t *testing.T) {
	t.Parallel()
	if server == nil {
		t.Skip("the S3 server is missing")
	}
	const bucket = "unfinished"
	b := open(t, server.URL(bucket+"/of us"), Options{})
	neighbour := open(t, server.URL(bucket+"/of us too"), Options{})
	begin := func(b *Bucket, name string) {
		t.Helper()
		upload, err := b.stageUpload(t.Context(), name, "token", strings.NewReader("x"), 1)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(upload.abort)
	}
	put(t, b, "nar/whole", random(large, 1))
	for _, name := range []string{"nar/old", "nar/older"} {
		begin(b, name)
	}
	begin(neighbour, "nar/others")
	if err := server.AgeUploads(bucket, 25*time.Hour, true); errors.Is(err, errors.ErrUnsupported) {
		t.Skip("only for versitygw")
	} else if err != nil {
		t.Fatal(err)
	}
	// An upload with a recent part.
	begin(b, "nar/resumed")
	if err := server.AgeUploads(bucket, 25*time.Hour, false); err != nil {
		t.Fatal(err)
	}
	begin(b, "nar/young")
	unfinished := func() (names []string) {
		t.Helper()
		for info, err := range b.ListUnfinished(t.Context(), time.Now().Add(-24*time.Hour)) {
			if err != nil {
				t.Fatal(err)
			}
			_, name, _ := parseTemporary(info.Name)
			if names = append(names, name); !info.Temporary || info.Size != 1 || time.Since(info.ModTime) < 24*time.Hour {
				t.Errorf("%+v", info)
			}
			if err := b.Remove(t.Context(), info.Name); err != nil {
				t.Error(err)
			}
		}
		slices.Sort(names)
		return names
	}
	if names := unfinished(); !slices.Equal(names, []string{"nar/old", "nar/older"}) {
		t.Errorf("%q are unfinished, want the old ones", names)
	}
	if names := unfinished(); len(names) != 0 {
		t.Errorf("%q are unfinished after they were removed", names)
	}
	if infos := list(t, b); len(infos) != 3 {
		t.Errorf("%+v, want the complete object and the two recent uploads", infos)
	}
	if infos := list(t, neighbour); len(infos) != 1 {
		t.Errorf("the other prefix has %+v", infos)
	}
}

// TestListUnfinishedStopped: cancelling the context while an upload is measured ends the
// listing, and is not reported as an error of that upload.
func TestListUnfinishedStopped(t *testing.T) {
	t.Parallel()
	var way faulty
	b := open(t, place(t), quick(&way))
	for _, name := range []string{"nar/a", "nar/b"} {
		upload, err := b.stageUpload(t.Context(), name, "token", strings.NewReader("x"), 1)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(upload.abort)
	}
	ctx, cancel := context.WithCancel(t.Context())
	way.set(func(r *http.Request) (*http.Response, error) {
		if r.URL.Query().Has("uploadId") {
			cancel()
			return nil, r.Context().Err()
		}
		return nil, nil
	})
	defer way.set(nil)
	listed := 0
	for info, err := range b.List(ctx) {
		if listed++; info.Name != "" || !errors.Is(err, context.Canceled) {
			t.Errorf("%+v, %v", info, err)
		}
	}
	if listed != 1 {
		t.Errorf("listed %d times", listed)
	}
}

// TestRealParts stores a nar of three parts of the default size.
func TestRealParts(t *testing.T) {
	t.Parallel()
	var way faulty
	b := open(t, place(t), Options{HTTPTransport: &way})
	content := random(2*smallestPart+777, 1)
	put(t, b, "nar/x", content)
	if n := way.count(); n != 5 {
		t.Errorf("%d requests, want one to create, three parts and one to complete", n)
	}
	wantContent(t, b, "nar/x", content)
	if got, err := readAll(t, b, "nar/x", smallestPart-5); err != nil || !bytes.Equal(got, content[smallestPart-5:]) {
		t.Errorf("across parts: %d bytes, %v", len(got), err)
	}
	// If a part fails permanently, the upload fails.
	way.set(func(r *http.Request) (*http.Response, error) {
		if r.URL.Query().Get("partNumber") == "2" {
			return always(403, "AccessDenied")(r)
		}
		return nil, nil
	})
	_, err := b.Stage(t.Context(), "nar/y", bytes.NewReader(content), int64(len(content)))
	wantFault(t, "a part that is refused", err, "part 2", "AccessDenied")
	way.set(nil)
	// The server rejects a damaged part.
	way.set(func(r *http.Request) (*http.Response, error) {
		if r.URL.Query().Get("partNumber") != "" {
			r.Header.Set("X-Amz-Checksum-Crc32c", "AAAAAA==")
		}
		return nil, nil
	})
	_, err = b.Stage(t.Context(), "nar/y", bytes.NewReader(content), int64(len(content)))
	wantFault(t, "a damaged part", err)
	way.set(nil)
	if infos := list(t, b); len(infos) != 1 {
		t.Errorf("left: %+v", infos)
	}
}

// TestPartsOutlastFailure: if a part fails, requests for other parts are completed. Otherwise
// the server might store a part after the abort.
func TestPartsOutlastFailure(t *testing.T) {
	t.Parallel()
	var way faulty
	b := open(t, place(t), quick(&way))
	put(t, b, "nar/x", random(3*(5<<20), 1)) // to detect the checksum
	begun, refused := make(chan struct{}), make(chan struct{})
	var first error
	way.set(func(r *http.Request) (*http.Response, error) {
		switch r.URL.Query().Get("partNumber") {
		case "1":
			close(begun)
			<-refused
			var response *http.Response
			response, first = straight.RoundTrip(r)
			return response, first
		case "2":
			<-begun
			defer close(refused)
			return always(403, "AccessDenied")(r)
		}
		return nil, nil
	})
	content := random(2*(5<<20), 2)
	_, err := b.Stage(t.Context(), "nar/y", bytes.NewReader(content), int64(len(content)))
	wantFault(t, "a part that is refused", err, "part 2", "AccessDenied")
	if first != nil {
		t.Errorf("the other part: %v", first)
	}
	if infos := list(t, b); len(infos) != 1 {
		t.Errorf("left: %+v", infos)
	}
}

func TestPartSizes(t *testing.T) {
	t.Parallel()
	b := open(t, "s3://bucket?endpoint=http://127.0.0.1:1", Options{})
	for size, want := range map[int64]int64{1: 8 << 20, 8 << 20: 8 << 20, 80_000 << 20: 8 << 20, 80_000<<20 + 1: 9 << 20, 5 << 40: 525 << 20} {
		got := b.partSizeFor(size)
		if got != want || (size+got-1)/got > mostPartsOfOne {
			t.Errorf("parts of %d for %d bytes, want %d", got, size, want)
		}
	}
}

// TestPresign: anybody can read the bytes with the URL, and nothing else.
func TestPresign(t *testing.T) {
	t.Parallel()
	b := open(t, place(t), Options{})
	content := random(5000, 1)
	const name = "nar/lzip/f7d5xvkf9s1mdnclid1kqndn30nim936-a b+c%25"
	put(t, b, name, content)
	get := func(name, ranged string) (*http.Response, []byte) {
		t.Helper()
		url, err := b.Presign(t.Context(), name, time.Minute)
		if err != nil {
			t.Fatal(err)
		}
		request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
		if err != nil {
			t.Fatal(err)
		}
		if ranged != "" {
			request.Header.Set("Range", ranged)
		}
		response, err := http.DefaultClient.Do(request)
		if err != nil {
			t.Fatal(err)
		}
		defer response.Body.Close()
		got, err := io.ReadAll(response.Body)
		if err != nil {
			t.Fatal(err)
		}
		return response, got
	}
	if response, got := get(name, ""); response.StatusCode != 200 || !bytes.Equal(got, content) {
		t.Errorf("%s, %d bytes", response.Status, len(got))
	}
	if response, got := get(name, "bytes=10-19"); response.StatusCode != 206 || !bytes.Equal(got, content[10:20]) {
		t.Errorf("a range: %s, %d bytes", response.Status, len(got))
	}
	if response, _ := get("nar/absent", ""); response.StatusCode != 404 {
		t.Errorf("a missing object: %s", response.Status)
	}
	for name, lifetime := range map[string]time.Duration{"../x": time.Minute, "nar/x": 0, temporaryName("id", "nar/x"): time.Minute} {
		if url, err := b.Presign(t.Context(), name, lifetime); err == nil {
			t.Errorf("%s for %v: %s", name, lifetime, url)
		}
	}
	if _, err := b.Presign(t.Context(), name, 1000*time.Hour); err != nil {
		t.Errorf("above the maximum: %v", err)
	}
}

// TestLongNames: a name that is too long for S3 is absent, and can't be stored.
func TestLongNames(t *testing.T) {
	t.Parallel()
	b := open(t, place(t), Options{})
	long := "nar/" + strings.Repeat("long/", 250) + "x"
	if _, err := b.Stat(t.Context(), long); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Stat: %v", err)
	}
	if _, err := b.Stage(t.Context(), long, strings.NewReader("x"), 1); err == nil || !strings.Contains(err.Error(), "too long") {
		t.Errorf("Stage: %v", err)
	}
	if err := b.Remove(t.Context(), long); err != nil {
		t.Errorf("Remove: %v", err)
	}
}
