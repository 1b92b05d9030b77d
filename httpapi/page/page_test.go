package page

import (
	"context"
	"errors"
	"log/slog"
	"math"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/fstest"
	"testing/synctest"
	"time"

	"github.com/valyala/fasthttp"
	"golang.org/x/net/html"
)

func TestWantsHTML(t *testing.T) {
	t.Parallel()
	for accept, want := range map[string]bool{
		"":    false,
		"*/*": false, // curl
		"text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8": true, // Firefox
		"text/html, text/plain, text/sgml, text/css, */*;q=0.01":                                true, // Lynx
		"TEXT/HTML;level=1":               true,
		"application/json, text/html;q=1": true,
		"text/html;q=0":                   false,
		"text/html; q=0.000":              false,
		"text/html;q=0.001":               true,
		"text/html;q=x":                   true,
		"text/*":                          false,
		"text/htmlx":                      false,
		"xtext/html":                      false,
		"application/xhtml+xml":           false,
		"application/json;x=text/html":    false,
		";;,,text/html,":                  true,
	} {
		if got := WantsHTML([]byte(accept)); got != want {
			t.Errorf("Accept: %s: %v", accept, got)
		}
	}
	if WantsHTML() || !WantsHTML([]byte("*/*"), []byte("text/html")) {
		t.Error("of several fields, one is enough")
	}
}

func FuzzWantsHTML(f *testing.F) {
	f.Add([]byte("text/html;q=0.1, */*"))
	f.Fuzz(func(t *testing.T, accept []byte) {
		if WantsHTML(accept) && !strings.Contains(strings.ToLower(string(accept)), "text/html") {
			t.Errorf("%q doesn't name it", accept)
		}
	})
}

func TestParseURL(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{ // "" for invalid
		"https://guix.example.org":         "https://guix.example.org",
		"https://guix.example.org/":        "https://guix.example.org",
		"http://guix.example.org:8080/a/b": "http://guix.example.org:8080/a/b",
		"http://[2001:db8::1]:8734":        "http://[2001:db8::1]:8734",
		"http://10.0.0.1/%2Bx~y/":          "http://10.0.0.1/%2Bx~y",
		"HTTPS://x.example":                "https://x.example",
		"":                                 "",
		"guix.example.org":                 "",
		"ftp://x.example":                  "",
		"file:///x":                        "",
		"https://":                         "",
		"https:///x":                       "",
		"https://user@x.example":           "",
		"https://user:pw@x.example":        "",
		"https://x.example?q":              "",
		"https://x.example?":               "",
		"https://x.example#f":              "",
		"https://x.example#":               "",
		"https://x.example/$(id)":          "",
		"https://x.example/`id`":           "https://x.example/%60id%60",
		`https://x.example/"x`:             "https://x.example/%22x",
		`https://x.example/\x`:             "https://x.example/%5Cx",
		"https://x.example/a b":            "https://x.example/a%20b",
		"https://x.example/a'b":            "",
		"https://x.example/!x":             "",
		"https://x.example//y":             "",
		"https://x$y.example":              "",
		"https://x.example/<b>":            "https://x.example/%3Cb%3E",
		"https://x.example/\n":             "",
		"https://ü.example":                "",
	} {
		got, err := ParseURL(text)
		if got != want || (err == nil) != (want != "") {
			t.Errorf("ParseURL(%q) = %q, %v", text, got, err)
		}
		if err != nil && strings.Contains(err.Error(), "pw") {
			t.Errorf("the error has the password: %v", err)
		}
	}
}

// FuzzParseURL: no URL has a character that a shell or Scheme interprets within double quotes.
func FuzzParseURL(f *testing.F) {
	for _, seed := range []string{"https://guix.example.org/a", "http://[::1]:80/%20", "https://x/$y"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		got, err := ParseURL(text)
		if err == nil && (strings.ContainsAny(got, " \t\n\r\x00$`\"\\'!;&|<>(){}*?#^") || strings.HasSuffix(got, "/")) {
			t.Errorf("%q becomes %q", text, got)
		}
	})
}

func TestCheckText(t *testing.T) {
	t.Parallel()
	for text, ok := range map[string]bool{
		"Guix <b>& friends": true, "ünïcode": true, "": false, "  ": false, "a\nb": false, "a\x1b[31m": false, "\xff": false, strings.Repeat("x", 201): false,
	} {
		if err := CheckText(text); (err == nil) != ok {
			t.Errorf("%q: %v", text, err)
		}
	}
}

// testSite has pages with what tests need.
func testSite(options Options) *Site {
	files := fstest.MapFS{"x.html": {Data: []byte(`{{define "content"}}<h1>{{.Title}}</h1>{{.Data}} {{.URL}} {{.ShowsMetrics}} {{.Rest}} <a href="{{.Root}}item/x">x</a>{{end}}`)}}
	shown := Parse(files, "x.html")
	s := New(options)
	make := func(title string) Handler {
		return func(_ context.Context, r *Request) (*Page, error) {
			switch r.Query.Get("q") {
			case "missing":
				return nil, ErrNotFound
			case "fault":
				return nil, errors.New("secret of /var/lib")
			}
			return &Page{Title: title, Template: shown, Data: r.Query.Get("q")}, nil
		}
	}
	s.Add(Route{Name: "", Label: "Home", Minimal: true, Make: make("")})
	s.Add(Route{Name: "search", Label: "Search", Make: make("Search")})
	s.Add(Route{Name: "item", TakesRest: true, Make: make("Item")})
	return s
}

// get asks the private handler, whose answers are those of the public one but for what is
// private.
func get(t *testing.T, s *Site, path string, header ...string) *httptest.ResponseRecorder {
	t.Helper()
	request := httptest.NewRequest("GET", path, nil)
	request.Header.Set("Accept", "text/html")
	for i := 0; i < len(header); i += 2 {
		request.Header.Set(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	s.Private(slog.New(slog.DiscardHandler)).ServeHTTP(w, request)
	return w
}

// TestShownFault: a page about a fault of the server is an answer that caches don't keep, and an
// error for the log.
func TestShownFault(t *testing.T) {
	t.Parallel()
	s := New(Options{Size: Full})
	s.Add(Route{Name: "fault", Make: func(context.Context, *Request) (*Page, error) {
		return &Page{Template: notFound, Fault: errors.New("broken")}, nil
	}})
	ctx := &fasthttp.RequestCtx{}
	ctx.Request.Header.Set("Accept", "text/html")
	var shown ShownFault
	if err := s.Serve(t.Context(), ctx, []string{"fault"}, none); !errors.As(err, &shown) || !strings.Contains(err.Error(), "broken") {
		t.Errorf("%v", err)
	}
	r := &ctx.Response
	if r.StatusCode() != http.StatusInternalServerError || string(r.Header.Peek("Cache-Control")) != "no-store" || !strings.Contains(string(r.Body()), "<h1>") {
		t.Errorf("%s", r)
	}
	if w := get(t, s, "/fault"); w.Code != http.StatusInternalServerError || !strings.Contains(w.Body.String(), "<h1>") {
		t.Errorf("for the administrator: %d, %s", w.Code, w.Body)
	}
}

// none says that the server has answered no request.
func none() int64 { return 0 }

// TestRest: a turn rests after a page if the server has answered many other requests meanwhile.
func TestRest(t *testing.T) {
	t.Parallel()
	for requests, want := range map[int64]time.Duration{0: 0, 1: restEach, 1000: 1000 * restEach, 1_000_000: mostRest} {
		synctest.Test(t, func(t *testing.T) {
			s := New(Options{Size: Full})
			var answered int64
			s.Add(Route{Name: "slow", Make: func(context.Context, *Request) (*Page, error) {
				answered += requests
				return &Page{Title: "Slow", Template: notFound}, nil
			}})
			ctx := &fasthttp.RequestCtx{}
			ctx.Request.Header.Set("Accept", "text/html")
			if err := s.Serve(t.Context(), ctx, []string{"slow"}, func() int64 { return answered }); err != nil {
				t.Fatal(err)
			}
			ended := time.Now()
			for range cap(s.turns) {
				s.turns <- struct{}{}
			}
			if rested := time.Since(ended); rested != want {
				t.Errorf("after %d requests, the next page waits %v, want %v", requests, rested, want)
			}
		})
	}
}

// TestTurns makes few public pages at a time. Others wait, and are refused after a time; those of
// the administrator don't.
func TestTurns(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := testSite(Options{Size: Full})
		serve := func() *fasthttp.Response {
			ctx := &fasthttp.RequestCtx{}
			ctx.Request.Header.Set("Accept", "text/html")
			if err := s.Serve(t.Context(), ctx, []string{"search"}, none); err != nil {
				t.Error(err)
			}
			return &ctx.Response
		}
		for range cap(s.turns) {
			s.turns <- struct{}{}
		}
		began := time.Now()
		answer := serve()
		if answer.StatusCode() != http.StatusServiceUnavailable || string(answer.Header.Peek("Retry-After")) != retryAfter ||
			string(answer.Header.Peek("Cache-Control")) != "no-store" || time.Since(began) != deadline {
			t.Errorf("without a turn, after %v: %s", time.Since(began), answer)
		}
		if w := get(t, s, "/search"); w.Code != http.StatusOK {
			t.Errorf("for the administrator: status %d", w.Code)
		}
		time.AfterFunc(deadline/2, func() { <-s.turns })
		for range 2 { // a page gives its turn back
			if answer := serve(); answer.StatusCode() != http.StatusOK {
				t.Errorf("with a turn: %s", answer)
			}
		}
	})
}

func TestSite(t *testing.T) {
	t.Parallel()
	s := testSite(Options{Size: Full, Title: `<script>alert("x")</script>`, Contact: `"><script>x</script>`, Version: "</footer>"})
	for path, status := range map[string]int{
		"/": 200, "/search": 200, "/item/x": 200, "/page/style.css": 200, "/page/icon.svg": 200,
		"/search/": 404, "/search/x": 404, "/item": 404, "/item/": 404, "/item/x/y": 200, "/item/x/": 404, "/page": 404, "/page/": 404, "/page/other.css": 404,
		"/x": 404, "/?q=missing": 404, "/search?q=fault": 500, "/search?q=%zz": 400, "/?q=a;b": 400,
	} {
		w := get(t, s, path)
		if w.Code != status {
			t.Errorf("%s: %d, want %d", path, w.Code, status)
		}
		if !strings.Contains(w.Header().Get("Content-Security-Policy"), "default-src 'none'") || w.Header().Get("X-Content-Type-Options") != "nosniff" || w.Header().Get("Referrer-Policy") == "" {
			t.Errorf("%s: header %v", path, w.Header())
		}
		if strings.Contains(w.Body.String(), "<script>") || strings.Contains(w.Body.String(), "secret") {
			t.Errorf("%s: %s", path, w.Body)
		}
	}
	page := get(t, s, "/search?q=%3Cimg%20src=x%20onerror=y%3E").Body.String()
	for _, want := range []string{
		"&lt;script&gt;alert(", "&lt;img src=x", `<html lang="en">`, `<main id="content"`, `href="#content"`, `<nav aria-label="Pages">`,
		`<a href="./search" aria-current="page">`, `<a href="./">`,
	} {
		if !strings.Contains(page, want) {
			t.Errorf("no %s in %s", want, page)
		}
	}
	if page := get(t, s, "/item/x").Body.String(); !strings.Contains(page, `href="../page/style.css?v=`) || !strings.Contains(page, `<a href="../item/x">`) || !strings.Contains(page, `<a href="../">`) {
		t.Errorf("links of a page below another: %s", page)
	}
	for path, home := range map[string]string{"/?q=missing": "./", "/x": "./", "/search/": "../", "/item/x/": "../../", "/x/y/z": "../../"} {
		page := get(t, s, path).Body.String()
		if !strings.Contains(page, "<h1>Not found</h1>") || !strings.Contains(page, `<a href="`+home+`">Go to the home page`) || strings.Contains(page, "aria-current") != (path == "/?q=missing") {
			t.Errorf("%s: %s", path, page)
		}
	}
	// Inline scripts, styles and handlers would be blocked by the policy.
	document, err := html.Parse(strings.NewReader(page))
	if err != nil {
		t.Fatal(err)
	}
	for node := range document.Descendants() {
		if node.Data == "style" || node.Data == "script" && node.FirstChild != nil {
			t.Errorf("the page has an inline %s", node.Data)
		}
		for _, a := range node.Attr {
			if a.Key == "style" || strings.HasPrefix(a.Key, "on") {
				t.Errorf("the page has an attribute %s", a.Key)
			}
		}
	}
}

func TestSizes(t *testing.T) {
	t.Parallel()
	for size, want := range map[Size][]string{Off: nil, Minimal: {"/", "/page/style.css"}, Full: {"/", "/search", "/item/x", "/page/style.css"}} {
		s := testSite(Options{Size: size})
		for _, path := range []string{"/", "/search", "/item/x", "/page/style.css"} {
			w := get(t, s, path)
			if got := w.Code == 200; got != slices.Contains(want, path) {
				t.Errorf("size %d: %s: %d", size, path, w.Code)
			}
		}
		if !s.Has([]string{""}) || s.Has([]string{"search"}) != (size == Full) {
			t.Errorf("size %d: paths", size)
		}
	}
}

func TestAssets(t *testing.T) {
	t.Parallel()
	s := testSite(Options{Size: Full})
	path := "/" + s.assetPath("style.css")
	w := get(t, s, path)
	if w.Code != 200 || w.Header().Get("Content-Type") != "text/css; charset=utf-8" || w.Body.Len() < 1000 || !strings.Contains(w.Header().Get("Cache-Control"), "immutable") {
		t.Errorf("%d, %v", w.Code, w.Header())
	}
	if again := get(t, s, path, "If-None-Match", w.Header().Get("ETag")); again.Code != http.StatusNotModified || again.Body.Len() != 0 {
		t.Errorf("again: %d", again.Code)
	}
	if other := get(t, s, "/page/style.css?v=other"); other.Code != 200 || other.Header().Get("Cache-Control") != "no-cache" {
		t.Errorf("another version: %d, %v", other.Code, other.Header())
	}
}

func TestURL(t *testing.T) {
	t.Parallel()
	known, unknown := New(Options{URL: "https://x.example/guix"}), New(Options{})
	if got, guessed := known.url("other.example"); got != "https://x.example/guix" || guessed {
		t.Errorf("%s, %v", got, guessed)
	}
	for host, want := range map[string]string{
		"": placeholder, "10.0.0.1:8734": "http://10.0.0.1:8734", "[::1]:8734": "http://[::1]:8734", "nas.local": "http://nas.local",
		"x$(id)": placeholder, `x"`: placeholder, "x y": placeholder, "x/../y": placeholder, "x:port": placeholder, "user@x": placeholder,
	} {
		if got, guessed := unknown.url(host); got != want || !guessed {
			t.Errorf("%q: %s, %v", host, got, guessed)
		}
	}
}

func TestContact(t *testing.T) {
	t.Parallel()
	for contact, want := range map[string]string{
		"ops@example.org": "mailto:ops@example.org", "https://example.org/x?y": "https://example.org/x?y", "#guix on IRC": "", "javascript:alert(1)": "",
		"a@b?bcc=c@d": "", "data:text/html,x": "", "@x": "", "x@": "", "mail ops@example.org": "",
	} {
		v := &View{site: New(Options{Contact: contact})}
		if got := string(v.ContactURL()); got != want {
			t.Errorf("%q: %q", contact, got)
		}
	}
}

func TestFormats(t *testing.T) {
	t.Parallel()
	for got, want := range map[string]string{
		Bytes(0): "0 B", Bytes(1023): "1023 B", Bytes(1024): "1.0 KiB", Bytes(7 << 20): "7.0 MiB", Bytes(1<<40 - 1): "1.0 TiB", Bytes(10 << 60 >> 1): "5.0 EiB",
		Count(0): "0", Count(999): "999", Count(1000): "1,000", Count(1234567): "1,234,567", Count(-1000): "-1,000", Count(-999): "-999",
		Plural(1, "item"): "1 item", Plural(2000, "item"): "2,000 items",
		Duration(90 * time.Microsecond): "90 µs", Duration(1500 * time.Millisecond): "1.5 s", Duration(90 * time.Second): "90 s",
		Duration(3 * time.Hour): "3 h", Duration(72 * time.Hour): "3 days",
		Percent(1, 3): "33 %", Percent(1, 300): "0.3 %", Percent(0, 3): "0 %", Percent(1, 0): "–",
	} {
		if got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

// TestContrast computes the contrast of the texts with their backgrounds, as in WCAG 2: at
// least 4.5 in both color schemes.
func TestContrast(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("style.css")
	if err != nil {
		t.Fatal(err)
	}
	schemes := regexp.MustCompile(`(?s):root \{(.*?)\}`).FindAllStringSubmatch(string(text), -1)
	if len(schemes) != 2 {
		t.Fatalf("%d color schemes", len(schemes))
	}
	for i, scheme := range schemes {
		colors := make(map[string]float64)
		for _, match := range regexp.MustCompile(`--([a-z-]+): #([0-9a-f]{6})`).FindAllStringSubmatch(scheme[1], -1) {
			colors[match[1]] = luminance(t, match[2])
		}
		for _, pair := range [][2]string{
			{"text", "back"}, {"text", "panel"}, {"text", "warn-back"}, {"text", "bad-back"}, {"dim", "back"}, {"dim", "panel"}, {"link", "back"}, {"link", "panel"},
			{"good", "back"}, {"good", "panel"}, {"warn", "back"}, {"warn", "panel"}, {"bad", "back"}, {"bad", "panel"}, {"back", "link"},
		} {
			a, okA := colors[pair[0]]
			b, okB := colors[pair[1]]
			if got := (max(a, b) + 0.05) / (min(a, b) + 0.05); !okA || !okB || got < 4.5 {
				t.Errorf("scheme %d: %s on %s has the contrast %.2f", i, pair[0], pair[1], got)
			}
		}
	}
}

// luminance is the relative luminance of a color.
func luminance(t *testing.T, hex string) float64 {
	t.Helper()
	sum := 0.0
	for i, weight := range []float64{0.2126, 0.7152, 0.0722} {
		n, err := strconv.ParseUint(hex[2*i:2*i+2], 16, 8)
		if err != nil {
			t.Fatal(err)
		}
		c := float64(n) / 255
		if c <= 0.04045 {
			c /= 12.92
		} else {
			c = math.Pow((c+0.055)/1.055, 2.4)
		}
		sum += weight * c
	}
	return sum
}
