package main

import (
	"bytes"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

func TestPercentile(t *testing.T) {
	var figures []float64
	for i := range 1000 {
		figures = append(figures, float64(1000-i))
	}
	if p := percentile(figures, 99); p != 990 {
		t.Errorf("p99 of 1 to 1000 is %v", p)
	}
	if p := percentile(figures[:3], 99); p != 1000 {
		t.Errorf("p99 of 998 to 1000 is %v", p)
	}
}

// TestColdNar: compare detects every body that differs from the nar.
func TestColdNar(t *testing.T) {
	c := newColdNar(3*coldPage + 7) // rounded to whole pages
	var text bytes.Buffer
	if err := c.write(&text); err != nil {
		t.Fatal(err)
	}
	good := text.Bytes()
	if int64(len(good)) != c.size || c.size != 3*coldPage {
		t.Fatalf("%d bytes, want %d", len(good), c.size)
	}
	if err := c.compare(bytes.NewReader(good)); err != nil {
		t.Error(err)
	}
	for name, bad := range map[string][]byte{
		"nothing":             nil,
		"too short":           good[:len(good)-1],
		"too long":            append(bytes.Clone(good), 0),
		"pages in wrong turn": append(bytes.Clone(good[coldPage:2*coldPage]), append(bytes.Clone(good[:coldPage]), good[2*coldPage:]...)...),
		"last byte":           append(bytes.Clone(good[:len(good)-1]), good[len(good)-1]^1),
	} {
		if c.compare(bytes.NewReader(bad)) == nil {
			t.Errorf("%s: accepted as the nar", name)
		}
	}
}

// fakeServer replaces a mirror.
func fakeServer(t *testing.T, answer http.HandlerFunc) *server {
	front := httptest.NewServer(answer)
	t.Cleanup(front.Close)
	return &server{name: "fake", address: strings.TrimPrefix(front.URL, "http://"), exited: make(chan error, 1)}
}

func TestUntilServed(t *testing.T) {
	asked := 0
	later := fakeServer(t, func(w http.ResponseWriter, r *http.Request) {
		if asked++; asked < 5 {
			http.NotFound(w, r)
		}
	})
	if _, err := later.untilServed(t.Context(), "/x"); err != nil || asked != 5 {
		t.Errorf("after %d: %v", asked, err)
	}
	broken := fakeServer(t, func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(http.StatusInternalServerError) })
	if _, err := broken.untilServed(t.Context(), "/x"); err == nil {
		t.Error("an answer 500 counts as one to wait for another")
	}
}

// TestUntilFollowing waits until a mirror reports being up to date without outstanding
// changes, and serves the last item.
func TestUntilFollowing(t *testing.T) {
	// The source gets an item while the mirror starts.
	states := []string{`{"state":"syncing","backlog":0}`, `{"state":"following","backlog":3}`, `{"state":"following","backlog":0}`, `{"state":"following","backlog":0}`}
	health, narinfos := 0, 0
	m := &mirroring{b: &bench{ctx: t.Context()}, last: "last"}
	s := fakeServer(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/health":
			if health == 0 {
				w.WriteHeader(http.StatusServiceUnavailable) // the server is starting
			}
			fmt.Fprintf(w, `{"mirror":%s}`, states[min(health, len(states)-1)])
			health++
		case "/last.narinfo":
			if narinfos++; narinfos == 1 {
				http.NotFound(w, r)
			}
		}
	})
	if err := m.untilFollowing(s); err != nil {
		t.Fatal(err)
	}
	if health != len(states) || narinfos != 2 {
		t.Errorf("%d requests for the health and %d for the narinfo, want %d and 2", health, narinfos, len(states))
	}
	s.exited <- fmt.Errorf("exit status 1")
	s.log = bytes.NewBufferString("out of luck")
	states = states[:1]
	if err := m.untilFollowing(s); err == nil || !strings.Contains(err.Error(), "out of luck") {
		t.Errorf("after the mirror has ended: %v", err)
	}
}

func TestMetric(t *testing.T) {
	s := fakeServer(t, func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, "# HELP a_total x\na_total 3\na_total_more 4\nb{route=\"/nar/\",status=\"200\"} 1.5e+06\n")
	})
	for name, want := range map[string]float64{"a_total": 3, `b{route="/nar/",status="200"}`: 1.5e6} {
		if got, err := s.metric(name); err != nil || got != want {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
	if _, err := s.metric("a"); err == nil {
		t.Error("a metric that is not there has a value")
	}
}
