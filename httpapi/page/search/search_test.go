package search

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"nar-herder/httpapi/page"
	"nar-herder/narinfo"
	"nar-herder/storage/index"
	"nar-herder/storage/search"
)

// searcher is a search index with a fixed result.
type searcher struct {
	result search.Result
	err    error
	after  string // of the last search
	newest []*index.Item
}

func (s *searcher) Search(_ context.Context, _ search.Query, after string, _ int) (search.Result, error) {
	s.after = after
	return s.result, s.err
}

func (s *searcher) State() search.State { return s.result.State }

func (s *searcher) Newest(context.Context, int) ([]*index.Item, error) { return s.newest, s.err }

// match returns an item in a result.
func match(t *testing.T, number int, name string) search.Match {
	t.Helper()
	n, err := narinfo.Parse(fmt.Appendf(nil, "StorePath: /gnu/store/%032d-%s\nNarHash: sha256:%s\nNarSize: 7340032\nReferences: \nURL: nar/x\nCompression: none\n", number, name, strings.Repeat("0", 52)))
	if err != nil {
		t.Fatal(err)
	}
	return search.Match{Item: &index.Item{Hash: n.StorePath.Hash, Text: n.Text, AddedAt: time.Date(2024, 2, 29, 0, 0, 0, 0, time.UTC)}, Narinfo: n}
}

// get requests the page with a query.
func (s *searcher) get(query string) (status int, body, location string) {
	site := page.New(page.Options{Size: page.Full})
	Add(site, s, s)
	request := httptest.NewRequest("GET", "/search?"+query, nil)
	request.Header.Set("Accept", "text/html")
	answer := httptest.NewRecorder()
	site.Private(nil).ServeHTTP(answer, request)
	return answer.Code, answer.Body.String(), answer.Header().Get("Location")
}

func wants(t *testing.T, body string, texts ...string) {
	t.Helper()
	for _, text := range texts {
		if unwanted, isUnwanted := strings.CutPrefix(text, "!"); isUnwanted == strings.Contains(body, strings.TrimPrefix(text, "!")) {
			t.Errorf("%q: unwanted: %v\n%s", unwanted, isUnwanted, body)
		}
	}
}

func TestResults(t *testing.T) {
	s := &searcher{result: search.Result{Items: []search.Match{match(t, 1, "hello-2.12"), match(t, 2, "7zip-x-1.0-lib")}, Total: 2}}
	status, body, _ := s.get("q=hello")
	if status != http.StatusOK {
		t.Errorf("status %d", status)
	}
	wants(t, body, `value="hello"`, `<a href="./item/00000000000000000000000000000001">hello</a>`, "<td>2.12</td>", "7.0 MiB", "2024-02-29", ">00000000<",
		">7zip-x</a>", "<td>1.0-lib</td>", ">2 items<", "!More", "!First page", "!being built")
	s.result.Total, s.result.Next = 1234567, "a=b?c+d"
	_, body, _ = s.get("q=hello")
	wants(t, body, "1,234,567 items; the first 2", `href="?after=a%3Db%3Fc%2Bd&amp;q=hello"`)
	_, body, _ = s.get("q=hello&after=a%3Db%3Fc%2Bd")
	wants(t, body, "First page", "1,234,567 items; 2 more")
	if s.after != s.result.Next {
		t.Errorf("after %q", s.after)
	}
	s.result = search.Result{}
	_, body, _ = s.get("q=" + url.QueryEscape(`"><script>alert(1)</script>`))
	wants(t, body, "No item matches.", "!<script>alert", "&lt;script&gt;", "!<table")
}

// TestBuilding says that results are incomplete.
func TestBuilding(t *testing.T) {
	s := &searcher{result: search.Result{State: search.State{Building: true, Indexed: 250_000, Items: 1_000_000}}}
	for _, query := range []string{"", "q=hello"} {
		_, body, _ := s.get(query)
		wants(t, body, "250,000 of 1,000,000 items", "incomplete")
	}
}

// TestNewest lists the newest items without a query.
func TestNewest(t *testing.T) {
	s := &searcher{newest: []*index.Item{match(t, 1, "hello-2.12").Item}}
	for _, query := range []string{"", "q=", "q=+"} {
		_, body, _ := s.get(query)
		wants(t, body, "The 1 newest item", ">hello</a>")
	}
	s.newest = nil
	_, body, _ := s.get("")
	wants(t, body, "no items yet", "!<table")
}

// TestExact leads to the item of a hash or store path.
func TestExact(t *testing.T) {
	const hash = "f7d5xvkf9s1mdnclid1kqndn30nim936"
	for _, query := range []string{hash, hash + "-greeting.txt", "/gnu/store/" + hash + "-greeting.txt", " " + hash + " "} {
		status, _, location := new(searcher).get("q=" + url.QueryEscape(query))
		if status != http.StatusFound || location != "./item/"+hash {
			t.Errorf("%q: %d %s", query, status, location)
		}
	}
}

func TestFaults(t *testing.T) {
	for name, test := range map[string]struct {
		query  string
		err    error
		status int
	}{
		"long":     {"q=" + strings.Repeat("x", 300), nil, http.StatusBadRequest},
		"cursor":   {"q=x&after=%00", search.ErrCursor, http.StatusBadRequest},
		"busy":     {"q=x", context.DeadlineExceeded, http.StatusServiceUnavailable},
		"in error": {"q=x", fmt.Errorf("search: %w", context.DeadlineExceeded), http.StatusServiceUnavailable},
	} {
		status, body, _ := (&searcher{err: test.err}).get(test.query)
		if status != test.status {
			t.Errorf("%s: status %d", name, status)
		}
		wants(t, body, "notice bad", `type="search"`)
	}
	m := maker{&searcher{err: errors.New("broken")}, &searcher{err: errors.New("broken")}}
	for _, query := range []url.Values{{}, {"q": {"x"}}} {
		if made, err := m.page(t.Context(), &page.Request{Query: query}); err == nil {
			t.Errorf("%v: %+v", query, made)
		}
	}
}

func TestSplit(t *testing.T) {
	for item, want := range map[string][2]string{
		"hello-2.12": {"hello", "2.12"}, "glibc-2.35-static": {"glibc", "2.35-static"}, "greeting.txt": {"greeting.txt", ""}, "gtk+-2.24": {"gtk+", "2.24"},
		"x-": {"x-", ""}, "-1": {"-1", ""}, "1": {"1", ""}, "": {"", ""}, "font-dejavu": {"font-dejavu", ""}, "a-1": {"a", "1"},
	} {
		if name, version := split(item); [2]string{name, version} != want {
			t.Errorf("%q: %q %q, want %q", item, name, version, want)
		}
	}
}
