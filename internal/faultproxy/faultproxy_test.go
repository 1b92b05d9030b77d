package faultproxy

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/bits"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

// patience is the timeout of waits.
func patience(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// content is the target's content, longer than all buffers.
var content = bytes.Repeat([]byte("0123456789abcdef"), 20_000)

// stream is the target's stream.
type stream struct {
	events chan string
	ended  chan struct{} // receives a value after a client has read its stream
}

// start starts a proxy and a target. The target has content at /known, the number of requests
// at /count, an empty body at /empty, and events at /stream.
func start(t *testing.T, pick func(*http.Request) Fault) (p *Proxy, s stream) {
	t.Helper()
	s = stream{make(chan string, 1), make(chan struct{}, 10)}
	asked := 0
	target := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/known":
			http.ServeContent(w, r, "", time.Unix(1e9, 0), bytes.NewReader(content))
		case "/count":
			asked++
			fmt.Fprintf(w, "%d", asked)
		case "/echo/a+b":
			w.Header().Set("X-Target", "yes")
			fmt.Fprint(w, r.Method, " ", r.RequestURI, " ", r.Header.Get("X-Asks"), " ", r.UserAgent())
		case "/empty":
			w.WriteHeader(http.StatusNoContent)
		case "/stream":
			defer func() { s.ended <- struct{}{} }()
			for {
				select {
				case event, ok := <-s.events:
					if !ok {
						return
					}
					fmt.Fprint(w, event)
					_ = http.NewResponseController(w).Flush()
				case <-r.Context().Done():
					return
				}
			}
		default:
			http.NotFound(w, r)
		}
	}))
	p = New(target.URL, pick)
	t.Cleanup(func() {
		p.Close()
		target.Close()
	})
	return p, s
}

// client uses a new connection for each request: otherwise it would repeat a request after its
// idle connection was closed.
var client = &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DisableCompression: true}}

func request(t *testing.T, method, url string, header ...string) *http.Request {
	t.Helper()
	r, err := http.NewRequestWithContext(patience(t), method, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	return r
}

// get returns the answer and the readable part of its body.
func get(t *testing.T, url string, header ...string) (*http.Response, []byte, error) {
	t.Helper()
	response, err := client.Do(request(t, http.MethodGet, url, header...))
	if err != nil {
		return nil, nil, err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	return response, body, err
}

// wantCount asserts how often a fault has happened, and that no request is stalled.
func wantCount(t *testing.T, p *Proxy, kind Kind, want int) {
	t.Helper()
	err := p.Await(patience(t), func(c Counts) bool { return c.Faults[kind] == want && c.Stalled == 0 })
	if err != nil {
		t.Errorf("%s: want %d: %v", kind, want, err)
	}
}

func TestThrough(t *testing.T) {
	t.Parallel()
	p, _ := start(t, Script())
	response, body, err := get(t, p.URL+"/echo/a%2Bb?x=%20y", "X-Asks", "me", "User-Agent", "tester")
	if err != nil || string(body) != "GET /echo/a%2Bb?x=%20y me tester" || response.Header.Get("X-Target") != "yes" {
		t.Errorf("%s %v %v", body, response, err)
	}
	response, body, err = get(t, p.URL+"/known", "Range", "bytes=16-31")
	if err != nil || response.StatusCode != 206 || string(body) != "0123456789abcdef" || response.Header.Get("Last-Modified") == "" {
		t.Errorf("%s %v %v", body, response, err)
	}
	if response, body, err = get(t, p.URL+"/known"); err != nil || !bytes.Equal(body, content) || response.ContentLength != int64(len(content)) {
		t.Errorf("%d bytes, %v %v", len(body), response, err)
	}
	if response, _, err = get(t, p.URL+"/no"); err != nil || response.StatusCode != 404 {
		t.Errorf("%v %v", response, err)
	}
	if response, err = client.Do(request(t, http.MethodHead, p.URL+"/known")); err != nil || response.ContentLength != int64(len(content)) {
		t.Errorf("%v %v", response, err)
	}
	wantCount(t, p, None, 5)
	if counts := p.Counts(); counts.Requests != 5 || counts.Faulty() != 0 {
		t.Errorf("%+v", counts)
	}
}

// TestFaults has each fault once. Afterwards, requests succeed.
func TestFaults(t *testing.T) {
	t.Parallel()
	half := int64(len(content) / 2)
	for _, test := range []struct {
		fault Fault
		check func(response *http.Response, body []byte, err error) bool
	}{
		{Fault{Kind: CutHead}, func(r *http.Response, _ []byte, err error) bool { return r == nil && errors.Is(err, io.EOF) }},
		{Fault{Kind: CutBody, At: 0.5}, func(r *http.Response, body []byte, err error) bool {
			return errors.Is(err, io.ErrUnexpectedEOF) && bytes.Equal(body, content[:half]) && r.ContentLength == int64(len(content))
		}},
		{Fault{Kind: CutBody}, func(r *http.Response, body []byte, err error) bool {
			return errors.Is(err, io.ErrUnexpectedEOF) && len(body) == 0 && r.StatusCode == 200
		}},
		{Fault{Kind: Status}, func(r *http.Response, body []byte, err error) bool { return err == nil && r.StatusCode == 503 }},
		{Fault{Kind: Status, Status: 502}, func(r *http.Response, body []byte, err error) bool { return err == nil && r.StatusCode == 502 }},
		{Fault{Kind: ShortLength, At: 0.5}, func(r *http.Response, body []byte, err error) bool {
			return err == nil && r.StatusCode == 200 && r.ContentLength == half && bytes.Equal(body, content[:half])
		}},
		{Fault{Kind: ShortLength, At: 1}, func(r *http.Response, body []byte, err error) bool {
			return err == nil && bytes.Equal(body, content[:len(content)-1])
		}},
		{Fault{Kind: ShortChunked, At: 0.5}, func(r *http.Response, body []byte, err error) bool {
			return err == nil && r.StatusCode == 200 && r.ContentLength == -1 && bytes.Equal(body, content[:half])
		}},
		{Fault{Kind: FlipBit, At: 0.5, Bit: 3}, func(r *http.Response, body []byte, err error) bool {
			if err != nil || len(body) != len(content) || r.ContentLength != int64(len(content)) {
				return false
			}
			flipped := 0
			for i := range body {
				flipped += bits.OnesCount8(body[i] ^ content[i])
			}
			return flipped == 1 && body[half] == content[half]^8
		}},
		{Fault{Kind: HTML}, func(r *http.Response, body []byte, err error) bool {
			return err == nil && r.StatusCode == 200 && strings.HasPrefix(r.Header.Get("Content-Type"), "text/html") && bytes.Contains(body, []byte("<html>"))
		}},
	} {
		p, _ := start(t, Script(test.fault))
		response, body, err := get(t, p.URL+"/known")
		if !test.check(response, body, err) {
			t.Errorf("%+v: %v, %d bytes, %v", test.fault, response, len(body), err)
		}
		wantCount(t, p, test.fault.Kind, 1)
		if _, body, err := get(t, p.URL+"/known"); err != nil || !bytes.Equal(body, content) {
			t.Errorf("after %+v: %d bytes, %v", test.fault, len(body), err)
		}
		wantCount(t, p, None, 1)
		if counts := p.Counts(); counts.Faulty() != 1 || counts.Unreachable != 0 {
			t.Errorf("%+v: %+v", test.fault, counts)
		}
	}
}

// TestNoBody has faults of bodies without a body.
func TestNoBody(t *testing.T) {
	t.Parallel()
	p, _ := start(t, func(*http.Request) Fault { return Fault{Kind: FlipBit} })
	if response, _, err := get(t, p.URL+"/empty"); err != nil || response.StatusCode != 204 {
		t.Errorf("%v %v", response, err)
	}
	if response, err := client.Do(request(t, http.MethodHead, p.URL+"/known")); err != nil || response.StatusCode != 200 {
		t.Errorf("%v %v", response, err)
	}
	wantCount(t, p, None, 2)
	wantCount(t, p, FlipBit, 0)
}

func TestStall(t *testing.T) {
	t.Parallel()
	for _, fault := range []Fault{{Kind: StallHead}, {Kind: StallBody, At: 0.25}} {
		p, _ := start(t, Script(fault, fault, fault))
		type result struct {
			body []byte
			err  error
		}
		done := make(chan result, 1)
		go func() {
			_, body, err := get(t, p.URL+"/known")
			done <- result{body, err}
		}()
		stalled := func(c Counts) bool { return c.Stalled == 1 }
		if err := p.Await(patience(t), stalled); err != nil {
			t.Fatal(err)
		}
		select {
		case r := <-done:
			t.Errorf("%s: did not stall: %d bytes, %v", fault.Kind, len(r.body), r.err)
		default:
		}
		p.Release()
		if r := <-done; r.err != nil || !bytes.Equal(r.body, content) {
			t.Errorf("%s: %d bytes, %v", fault.Kind, len(r.body), r.err)
		}
		wantCount(t, p, fault.Kind, 1)
		wantCount(t, p, None, 0)

		// A client that leaves, and one that waits until the proxy is closed.
		ctx, cancel := context.WithCancel(t.Context())
		left := request(t, http.MethodGet, p.URL+"/known").WithContext(ctx)
		go func() {
			response, err := client.Do(left)
			if err == nil {
				_, err = io.Copy(io.Discard, response.Body)
				response.Body.Close()
			}
			done <- result{err: err}
		}()
		if err := p.Await(patience(t), stalled); err != nil {
			t.Fatal(err)
		}
		cancel()
		if r := <-done; !errors.Is(r.err, context.Canceled) {
			t.Errorf("%s: left: %v", fault.Kind, r.err)
		}
		wantCount(t, p, fault.Kind, 2)
	}
}

func TestStallClosed(t *testing.T) {
	t.Parallel()
	target := httptest.NewServer(http.NotFoundHandler())
	defer target.Close()
	p := New(target.URL, Script(Fault{Kind: StallHead}))
	done := make(chan error, 1)
	go func() {
		_, _, err := get(t, p.URL+"/known")
		done <- err
	}()
	if err := p.Await(patience(t), func(c Counts) bool { return c.Stalled == 1 }); err != nil {
		t.Error(err)
	}
	p.Close()
	if err := <-done; err == nil {
		t.Error("it got an answer")
	}
}

func TestStale(t *testing.T) {
	t.Parallel()
	stale := Fault{Kind: Stale}
	p, _ := start(t, Script(stale, Fault{}, stale, Fault{Kind: Stale, At: 0.9}, stale, Fault{}, Fault{}, Fault{}, stale))
	// The first request has no old answer. In the end, four are remembered: 2 to 5.
	for i, want := range []string{"1", "2", "1", "2", "1", "3", "4", "5", "2"} {
		if _, body, err := get(t, p.URL+"/count"); err != nil || string(body) != want {
			t.Errorf("answer %d: %s, %v; want %s", i, body, err, want)
		}
	}
	wantCount(t, p, Stale, 4)
	wantCount(t, p, None, 5)
}

// TestStream: events arrive one by one, with faults between them.
func TestStream(t *testing.T) {
	t.Parallel()
	p, s := start(t, Script(Fault{}, Fault{Kind: CutBody, After: 9}, Fault{Kind: FlipBit, After: 6}, Fault{Kind: ShortChunked, After: 1000}))
	open := func() (*bufio.Reader, func()) {
		t.Helper()
		response, err := client.Do(request(t, http.MethodGet, p.URL+"/stream"))
		if err != nil {
			t.Fatal(err)
		}
		return bufio.NewReader(response.Body), func() {
			t.Helper()
			response.Body.Close()
			select {
			case <-s.ended:
			case <-patience(t).Done():
				t.Fatal("the target continues the stream")
			}
		}
	}
	line := func(r *bufio.Reader, want string) {
		t.Helper()
		if got, err := r.ReadString('\n'); err != nil || got != want {
			t.Errorf("%q, %v; want %q", got, err, want)
		}
	}
	send := func(event string) {
		t.Helper()
		select {
		case s.events <- event:
		case <-patience(t).Done():
			t.Fatal("the target doesn't send the event")
		}
	}
	// The server sends the head together with the first event.
	send("event 1\n")
	r, leave := open()
	line(r, "event 1\n")
	send("event 2\n") // only after the first event has arrived
	line(r, "event 2\n")
	leave()

	send("event 1\n")
	r, leave = open()
	line(r, "event 1\n")
	send("event 2\n")
	if got, err := io.ReadAll(r); string(got) != "e" || !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("cut: %q, %v", got, err)
	}
	leave()

	send("event 1\n")
	r, leave = open()
	line(r, "event 0\n")
	leave()

	send("event 1\n")
	r, leave = open()
	line(r, "event 1\n")
	close(s.events)
	if _, err := r.ReadString('\n'); err != io.EOF {
		t.Errorf("the end: %v", err)
	}
	leave()
	wantCount(t, p, None, 1) // the stream ends before
	wantCount(t, p, ShortChunked, 0)
}

// TestUnreachable has no target, and one that stops during a body.
func TestUnreachable(t *testing.T) {
	t.Parallel()
	target := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", "100")
		fmt.Fprint(w, "some")
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	}))
	p := New(target.URL, Script())
	defer p.Close()
	if _, body, err := get(t, p.URL+"/x"); !errors.Is(err, io.ErrUnexpectedEOF) || string(body) != "some" {
		t.Errorf("%q, %v", body, err)
	}
	target.Close()
	if _, _, err := get(t, p.URL+"/x"); err == nil {
		t.Error("got an answer without a target")
	}
	if counts := p.Counts(); counts.Unreachable != 2 {
		t.Errorf("%+v", counts)
	}
}

func TestPicks(t *testing.T) {
	t.Parallel()
	r := httptest.NewRequest(http.MethodGet, "/nar/x", nil)
	a, b, all := Random(7, 0.5, All...), Random(7, 0.5, All...), map[Kind]int{}
	for range 1000 {
		fault := a(r)
		if fault != b(r) {
			t.Fatal("the same seed picks other faults")
		}
		if fault.At < 0 || fault.At >= 1 || fault.Bit > 7 {
			t.Errorf("%+v", fault)
		}
		all[fault.Kind]++
	}
	if len(all) != len(All)+1 || all[None] < 400 || all[None] > 600 {
		t.Errorf("%v", all)
	}
	below := Below("/nar/", Script(Fault{Kind: HTML}))
	if fault := below(httptest.NewRequest(http.MethodGet, "/health", nil)); fault.Kind != None {
		t.Errorf("%+v", fault)
	}
	if fault := below(r); fault.Kind != HTML {
		t.Errorf("%+v", fault)
	}
	for kind := range kinds {
		if kind.String() == "" {
			t.Errorf("kind %d has no name", kind)
		}
	}
}
