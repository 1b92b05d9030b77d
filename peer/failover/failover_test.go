package failover

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"nar-herder/narinfo"
	"nar-herder/peer"
	"nar-herder/storage"
	"nar-herder/storage/index"
)

// fake is a server with a file.
type fake struct {
	name string
	file []byte
	// err is the error of each request, and cut how many bytes an answer has before it fails;
	// negative for all.
	err             error
	cut             int
	noRange         bool
	once            bool // only the first request is answered
	resting, failed bool
	offsets         []int64 // of the requests
}

func (f *fake) String() string  { return f.name }
func (f *fake) IsResting() bool { return f.resting }
func (f *fake) HasFailed() bool { return f.failed }

var errCut = errors.New("the connection was cut")

func (f *fake) OpenFile(_ context.Context, _ *storage.Item, _ int, offset, length int64, _ []string) (io.ReadCloser, int64, error) {
	f.offsets = append(f.offsets, offset)
	switch {
	case f.err != nil:
		return nil, 0, f.err
	case f.once && len(f.offsets) > 1:
		return nil, 0, errCut
	case offset > 0 && f.noRange:
		return nil, 0, peer.ErrNoRange
	}
	part := f.file[min(offset, int64(len(f.file))):]
	if length >= 0 {
		part = part[:min(length, int64(len(part)))]
	}
	var from io.Reader = bytes.NewReader(part)
	if f.cut >= 0 && f.cut < len(part) {
		from = iotest.DataErrReader(io.MultiReader(bytes.NewReader(part[:f.cut]), failing{}))
	}
	return io.NopCloser(from), int64(len(f.file)), nil
}

type failing struct{}

func (failing) Read([]byte) (int, error) { return 0, errCut }

func (f *fake) Locate(context.Context, *storage.Item, int, []string) (string, [16]byte, error) {
	if f.err != nil {
		return "", [16]byte{}, f.err
	}
	return f.name, [16]byte{1}, nil
}

// good returns a server that sends the whole file.
func good(name string, file []byte) *fake { return &fake{name: name, file: file, cut: -1} }

// random returns random bytes.
func random(size int, seed byte) []byte {
	b := make([]byte, size)
	_, _ = rand.NewChaCha8([32]byte{seed}).Read(b)
	return b
}

func testItem(t *testing.T) *storage.Item {
	t.Helper()
	base := strings.Repeat("1", narinfo.PathHashLen) + "-item"
	path, err := narinfo.ParseBaseName(base)
	if err != nil {
		t.Fatal(err)
	}
	text := fmt.Sprintf("StorePath: /gnu/store/%s\nNarHash: sha256:%s\nReferences:\nURL: nar/%s\nCompression: none\n", base, strings.Repeat("0", 52), base)
	item, err := storage.NewItem(&index.Item{Hash: path.Hash, Text: []byte(text)})
	if err != nil {
		t.Fatal(err)
	}
	return item
}

// TestFirst: several servers are asked, each of which has the file, doesn't have it, fails, or
// rests.
func TestFirst(t *testing.T) {
	t.Parallel()
	item := testItem(t)
	errServer := errors.New("it fails")
	for kinds, want := range map[string]error{
		"": storage.ErrNotStored, "y": nil, "n": storage.ErrNotStored, "f": errServer, "r": errResting,
		"ry": nil, "ny": nil, "fy": nil, "yr": nil, "nn": storage.ErrNotStored, "nf": errServer, "fn": errServer, "rn": errResting, "nnr": errResting, "rfny": nil,
	} {
		var servers []*fake
		for _, kind := range kinds {
			server := good(string(kind), []byte("content"))
			switch kind {
			case 'n':
				server.err = storage.ErrNotStored
			case 'f':
				server.err = errServer
			case 'r':
				server.resting = true
			}
			servers = append(servers, server)
		}
		source := Of(servers...)
		body, size, err := source.OpenFile(t.Context(), item, 0, 0, -1, nil)
		if !errors.Is(err, want) || (err == nil) != (want == nil) || errors.Is(err, storage.ErrNotStored) && want != storage.ErrNotStored {
			t.Errorf("%q: %v, want %v", kinds, err, want)
		}
		if err == nil {
			if got, err := io.ReadAll(body); string(got) != "content" || size != 7 || err != nil {
				t.Errorf("%q: %q of %d bytes, %v", kinds, got, size, err)
			}
		}
		location, _, err := source.Locate(t.Context(), item, 0, nil)
		if !errors.Is(err, want) || (err == nil) != (want == nil) || err == nil && location != "y" {
			t.Errorf("locate in %q: %q, %v, want %v", kinds, location, err, want)
		}
	}
}

// TestContinue: the first server fails in the middle of a file, or of a part of it.
func TestContinue(t *testing.T) {
	t.Parallel()
	item := testItem(t)
	file := random(500_000, 1)
	other := bytes.Clone(file)
	other[199_999] ^= 1 // the last byte before the cut
	early := bytes.Clone(file)
	early[1000] ^= 1 // not within the overlap
	const cut = 200_000
	for name, test := range map[string]struct {
		servers []*fake
		want    []byte // nil for an error
	}{
		"at the next":                   {[]*fake{{file: file, cut: cut}, good("b", file)}, file},
		"at the next, without ranges":   {[]*fake{{file: file, cut: cut}, {file: file, cut: -1, noRange: true}}, file},
		"at the only one":               {[]*fake{{file: file, cut: 300_000}}, file},
		"at the third":                  {[]*fake{{file: file, cut: cut}, {err: errCut}, good("c", file)}, file},
		"twice":                         {[]*fake{{file: file, cut: cut, once: true}, {file: file, cut: cut}, good("c", file)}, file},
		"another file":                  {[]*fake{{file: file, cut: cut, once: true}, good("b", other)}, nil},
		"another size":                  {[]*fake{{file: file, cut: cut, once: true}, good("b", file[:cut-1])}, nil},
		"another file, then the right":  {[]*fake{{file: file, cut: cut, once: true}, good("b", other), good("c", file)}, file},
		"a file with another beginning": {[]*fake{{file: file, cut: cut}, good("b", early)}, file}, // the NarHash tells
		"absent elsewhere":              {[]*fake{{file: file, cut: cut, once: true}, {err: storage.ErrNotStored}}, nil},
		"a few bytes at a time":         {[]*fake{{file: file, cut: 1000}}, nil},
	} {
		for _, part := range []struct{ offset, length int64 }{{0, -1}, {0, 400_000}, {10, -1}, {10, 400_000}} {
			for _, server := range test.servers {
				server.offsets = nil
			}
			body, size, err := Of(test.servers...).OpenFile(t.Context(), item, 0, part.offset, part.length, nil)
			if err != nil || size != int64(len(file)) {
				t.Fatalf("%s: %d, %v", name, size, err)
			}
			got, err := io.ReadAll(body)
			want := file[part.offset:]
			if part.length >= 0 {
				want = want[:part.length]
			}
			switch {
			case test.want == nil && (err == nil || len(got) >= len(want) || !bytes.Equal(got, want[:len(got)])):
				t.Errorf("%s, %v: %d bytes, %v", name, part, len(got), err)
			case test.want != nil && (err != nil || !bytes.Equal(got, want)):
				t.Errorf("%s, %v: %d bytes, %v, want %d", name, part, len(got), err, len(want))
			}
			body.Close()
		}
	}
}

// TestResume: the rest of a file is opened at a server with the same bytes before it.
func TestResume(t *testing.T) {
	t.Parallel()
	item := testItem(t)
	file := random(300_000, 1)
	other := random(300_000, 2)
	for name, test := range map[string]struct {
		servers []*fake
		offset  int64
		want    error
		offsets []int64 // of the requests to the last server
	}{
		"from the beginning":       {[]*fake{good("a", file)}, 0, nil, []int64{0}},
		"near the beginning":       {[]*fake{good("a", file)}, 1000, nil, []int64{0}},
		"later":                    {[]*fake{good("a", file)}, 200_000, nil, []int64{200_000 - overlap}},
		"at the end":               {[]*fake{good("a", file)}, 300_000, nil, []int64{300_000 - overlap}},
		"without ranges":           {[]*fake{{file: file, cut: -1, noRange: true}}, 200_000, nil, []int64{200_000 - overlap, 0}},
		"another file":             {[]*fake{good("a", other)}, 200_000, ErrDiffers, []int64{200_000 - overlap}},
		"a shorter file":           {[]*fake{good("a", file[:100_000])}, 200_000, ErrDiffers, nil},
		"another file, then right": {[]*fake{good("a", other), good("b", file)}, 200_000, nil, []int64{200_000 - overlap}},
		"cut in the overlap":       {[]*fake{{file: file, cut: 10}}, 200_000, errCut, []int64{200_000 - overlap}},
		"absent":                   {[]*fake{{err: storage.ErrNotStored}}, 200_000, storage.ErrNotStored, nil},
		// A server that has just failed is asked last.
		"failed": {[]*fake{{file: other, cut: -1, failed: true}, good("b", file)}, 200_000, nil, []int64{200_000 - overlap}},
	} {
		body, size, err := Of(test.servers...).Resume(t.Context(), item, 0, bytes.NewReader(file), test.offset, nil)
		if !errors.Is(err, test.want) || (err == nil) != (test.want == nil) {
			t.Errorf("%s: %v, want %v", name, err, test.want)
		}
		if err == nil {
			if got, err := io.ReadAll(body); err != nil || !bytes.Equal(got, file[test.offset:]) || size != int64(len(file)) {
				t.Errorf("%s: %d bytes of %d, %v", name, len(got), size, err)
			}
			body.Close()
		}
		last := test.servers[len(test.servers)-1]
		if test.offsets != nil && fmt.Sprint(last.offsets) != fmt.Sprint(test.offsets) {
			t.Errorf("%s: requests from %v, want %v", name, last.offsets, test.offsets)
		}
		if test.servers[0].failed && len(test.servers[0].offsets) > 0 {
			t.Errorf("%s: the failed server was asked first", name)
		}
	}
}

// TestReject: a server with a wrong file is asked last for it, for some time.
func TestReject(t *testing.T) {
	t.Parallel()
	item := testItem(t)
	a, b := good("a", []byte("wrong")), good("b", []byte("right"))
	source := Of(a, b)
	open := func() (io.ReadCloser, string) {
		t.Helper()
		body, _, err := source.OpenFile(t.Context(), item, 0, 0, -1, nil)
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(body)
		if err != nil {
			t.Fatal(err)
		}
		return body, string(content)
	}
	body, content := open()
	if server, others := Reject(body); content != "wrong" || server != "a" || !others {
		t.Errorf("%q of %s, others %v", content, server, others)
	}
	body, content = open()
	if server, others := Reject(body); content != "right" || server != "b" || others {
		t.Errorf("%q of %s, others %v", content, server, others)
	}
	// Both are rejected: they take turns.
	for _, want := range []string{"wrong", "right", "wrong"} {
		if body, content = open(); content != want {
			t.Errorf("%q, want %q", content, want)
		}
		Reject(body)
	}
	for _, key := range source.rejected.Keys() {
		source.rejected.Add(key, time.Now().Add(-rejectedFor))
	}
	if _, content := open(); content != "wrong" {
		t.Errorf("%q after the time", content)
	}
	if server, others := Reject(io.NopCloser(nil)); server != "" || others {
		t.Errorf("%q, %v of another body", server, others)
	}
}

// TestRejectContinued: bytes of several servers, or of one that has failed, are wrong.
func TestRejectContinued(t *testing.T) {
	t.Parallel()
	item := testItem(t)
	file := random(300_000, 1)
	const cut = 200_000
	for name, test := range map[string]struct {
		servers []*fake
		read    int64 // negative for all
		want    string
	}{
		// If the other one is at fault, it is rejected when it has sent the whole file.
		"the rest is another's":          {[]*fake{{name: "a", file: file, cut: cut, once: true}, good("b", file), good("c", file)}, -1, "a"},
		"before a failure is noticed":    {[]*fake{{name: "a", file: file, cut: cut, once: true}, {name: "b", err: errCut}}, cut, "a"},
		"nothing is wrong but the end":   {[]*fake{{name: "a", file: file, cut: cut, once: true}, {name: "b", err: errCut}}, -1, ""},
		"the rest fails, too":            {[]*fake{{name: "a", file: file, cut: cut, once: true}, {name: "b", file: file, cut: 80_000, once: true}}, -1, ""},
		"a part, and all has been there": {[]*fake{good("a", file), good("b", file)}, 1000, "a"},
	} {
		body, _, err := Of(test.servers...).OpenFile(t.Context(), item, 0, 0, -1, nil)
		if err != nil {
			t.Fatal(err)
		}
		if test.read < 0 {
			_, _ = io.Copy(io.Discard, body)
		} else if _, err := io.CopyN(io.Discard, struct{ io.Reader }{body}, test.read); err != nil {
			t.Fatal(err)
		}
		if server, others := Reject(body); server != test.want || others != (test.want != "") {
			t.Errorf("%s: %q is rejected, others %v; want %q", name, server, others, test.want)
		}
		body.Close()
	}
}
