package s3

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// TestLostAnswers: a commit with a lost response has succeeded, and is not repeated.
func TestLostAnswers(t *testing.T) {
	t.Parallel()
	for what, lost := range map[string]func(*http.Request) (*http.Response, error){
		"cut":      func(*http.Request) (*http.Response, error) { return nil, io.ErrUnexpectedEOF },
		"500":      always(500, "InternalError"),
		"504 page": always(504, page),
		"error in 200": func(r *http.Request) (*http.Response, error) {
			response, err := always(200, "InternalError")(r)
			return response, err
		},
		"nothing in 200": always(200, ""),
		"page in 200":    always(200, page),
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			for _, size := range []int{small, large} {
				var way faulty
				b := open(t, place(t), quick(&way))
				put(t, b, "nar/x", []byte("before"))
				content := random(size, 1)
				staged, err := b.Stage(t.Context(), "nar/x", bytes.NewReader(content), int64(size))
				if err != nil {
					t.Fatal(err)
				}
				way.set(ofWrites(lostTo(lost)))
				if err := staged.Commit(t.Context()); err != nil {
					t.Errorf("%d bytes: %v", size, err)
				}
				staged.Abort()
				way.set(nil)
				wantContent(t, b, "nar/x", content)
				put(t, b, "nar/x", []byte("after"))
				if err := staged.Commit(t.Context()); err != nil {
					t.Errorf("again: %v", err)
				}
				wantContent(t, b, "nar/x", []byte("after"))
				if infos := list(t, b); len(infos) != 1 {
					t.Errorf("left: %+v", infos)
				}
			}
		})
	}
}

// TestCommitAgain: a failed commit can be retried.
func TestCommitAgain(t *testing.T) {
	t.Parallel()
	var way faulty
	for _, size := range []int{0, small, large} {
		b := open(t, place(t), quick(&way))
		content := random(size, 1)
		staged, err := b.Stage(t.Context(), "nar/x", bytes.NewReader(content), int64(size))
		if err != nil {
			t.Fatal(err)
		}
		way.set(always(503, "SlowDown"))
		wantFault(t, "Commit", staged.Commit(t.Context()), "SlowDown")
		way.set(nil)
		if _, err := b.Stat(t.Context(), "nar/x"); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("after a failed commit: %v", err)
		}
		if err := staged.Commit(t.Context()); err != nil {
			t.Error(err)
		}
		wantContent(t, b, "nar/x", content)
	}
}

// TestPartsInMemory: the memory for parts is bounded, however many nars are stored at once.
func TestPartsInMemory(t *testing.T) {
	t.Parallel()
	const nars, size = 5, 2 * smallestPart
	var mu sync.Mutex
	var now, most int64
	full := make(chan struct{})
	var way faulty
	way.set(func(r *http.Request) (*http.Response, error) {
		part, _ := strconv.Atoi(r.URL.Query().Get("partNumber"))
		if part == 0 {
			return nil, nil
		}
		mu.Lock()
		now += r.ContentLength
		if most = max(most, now); now > mostParts-smallestPart {
			select {
			case <-full:
			default:
				close(full)
			}
		}
		mu.Unlock()
		// Block all parts until the memory is used up.
		select {
		case <-full:
		case <-r.Context().Done():
		}
		response, err := straight.RoundTrip(r)
		mu.Lock()
		now -= r.ContentLength
		mu.Unlock()
		return response, err
	})
	// With a known checksum: otherwise the first parts are sent one at a time.
	b := open(t, place(t)+"&checksum=crc32c", Options{HTTPTransport: &way})
	content := random(size, 1)
	var group sync.WaitGroup
	for i := range nars {
		group.Go(func() {
			name := "nar/" + strconv.Itoa(i)
			staged, err := b.Stage(t.Context(), name, bytes.NewReader(content), size)
			if err == nil {
				err = staged.Commit(t.Context())
			}
			if err != nil {
				t.Error(err)
				return
			}
		})
	}
	group.Wait()
	wantContent(t, b, "nar/3", content)
	if infos := list(t, b); len(infos) != nars {
		t.Errorf("%d nars, want %d: %+v", len(infos), nars, infos)
	}
	if most > mostParts || most == 0 {
		t.Errorf("%d bytes of parts in memory, want at most %d", most, mostParts)
	}
}

// TestStagedInMemory: small nars are uploaded if the memory for them is used up.
func TestStagedInMemory(t *testing.T) {
	t.Parallel()
	b := open(t, place(t), Options{})
	content := random(mostInMemory, 1)
	const more = 3
	for range mostStaged/mostInMemory + more {
		staged, err := b.Stage(t.Context(), "nar/x", bytes.NewReader(content), int64(len(content)))
		if err != nil {
			t.Fatal(err)
		}
		defer staged.Abort()
		_ = staged
	}
	infos := list(t, b)
	if !listsUploads {
		t.Skip("this server doesn't list unfinished uploads")
	}
	if len(infos) != more {
		t.Errorf("%d unfinished uploads, want %d", len(infos), more)
	}
	for _, info := range infos {
		if !info.Temporary || info.Size != mostInMemory || time.Since(info.ModTime).Abs() > time.Hour {
			t.Errorf("%+v", info)
		}
		if _, err := b.Stat(t.Context(), info.Name); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("Stat of %s: %v", info.Name, err)
		}
		for range 2 {
			if err := b.Remove(t.Context(), info.Name); err != nil {
				t.Errorf("remove %s: %v", info.Name, err)
			}
		}
	}
	if infos := list(t, b); len(infos) != 0 {
		t.Errorf("left: %+v", infos)
	}
}

// TestCommitNewFaults: lost responses, servers without conditional uploads, and concurrent
// commits.
func TestCommitNewFaults(t *testing.T) {
	t.Parallel()
	type hook func(*http.Request) (*http.Response, error)
	refused := func(status int, code string) hook {
		return func(r *http.Request) (*http.Response, error) {
			if r.Header.Get("If-None-Match") == "" {
				return nil, nil
			}
			return always(status, code)(r)
		}
	}
	const conflict = "ConditionalRequestConflict"
	for what, test := range map[string]struct {
		hook  hook
		first int            // how many requests get it; 0 for all
		want  map[int]string // by size; "" for success
		other bool           // another client commits just before
	}{
		"lost":            {hook: lostTo(always(500, "InternalError")), first: 1},
		"not known":       {hook: refused(501, "NotImplemented")},
		"unknown, as 400": {hook: refused(400, "NotImplemented")},
		// Only the caller can restart an upload.
		"conflict":    {hook: refused(409, conflict), first: 2, want: map[int]string{large: conflict}},
		"conflicts":   {hook: refused(409, conflict), want: map[int]string{small: conflict, large: conflict}},
		"not allowed": {hook: refused(403, "AccessDenied"), want: map[int]string{small: "AccessDenied", large: "AccessDenied"}},
		"too late":    {first: 1, other: true, want: map[int]string{small: "file already exists", large: "file already exists"}},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			for _, size := range []int{small, large} {
				var way faulty
				url := place(t)
				b, others := open(t, url, quick(&way)), open(t, url, Options{})
				content := random(size, 1)
				staged, err := b.Stage(t.Context(), "nar/x", bytes.NewReader(content), int64(size))
				if err != nil {
					t.Fatal(err)
				}
				defer staged.Abort()
				hook := test.hook
				if test.other {
					hook = func(*http.Request) (*http.Response, error) {
						put(t, others, "nar/x", []byte("other"))
						return nil, nil
					}
				}
				if test.first > 0 {
					hook = times(test.first, hook)
				}
				way.set(ofWrites(hook))
				err = staged.CommitNew(t.Context())
				way.set(nil)
				switch want := test.want[size]; {
				case want == "" && err != nil:
					t.Errorf("%d bytes: %v", size, err)
				case want == "":
					wantContent(t, b, "nar/x", content)
				case err == nil || !strings.Contains(err.Error(), want) || errors.Is(err, fs.ErrExist) != test.other:
					t.Errorf("%d bytes: %v, want %s", size, err, want)
				case test.other:
					wantContent(t, b, "nar/x", []byte("other"))
				default:
					if _, err := b.Stat(t.Context(), "nar/x"); !errors.Is(err, fs.ErrNotExist) {
						t.Errorf("%d bytes: the object exists: %v", size, err)
					}
				}
			}
		})
	}
}
