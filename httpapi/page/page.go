// Package page frames the pages for browsers: it has their layout, style sheet, routes, and
// header fields, and decides which requests get a page.
//
// A page is made by a [Handler], which knows nothing of HTTP. The same handlers serve the
// public listener and the administrator's control listener.
package page

import (
	"bytes"
	"cmp"
	"context"
	"embed"
	"errors"
	"html/template"
	"io/fs"
	"net/http"
	"net/url"
	"runtime"
	"slices"
	"strings"
)

// Size says which pages there are.
type Size int

const (
	Off     Size = iota // none
	Minimal             // the pages with [Route.Minimal]
	Full                // all
)

// ErrNotFound is the error of a [Handler] that has no page for a request.
var ErrNotFound = errors.New("there is no such page")

// Options of [New].
type Options struct {
	Size Size
	// Title is the name of the server; "" for the default. Contact is a mail address, a URL,
	// or a text that says how to reach the administrator; "" for none.
	Title, Contact string
	// URL is where clients reach the server, see [ParseURL]; "" to use the address in the
	// request, where that is known.
	URL string
	// HideMetrics says that the public pages must not show what /metrics and /health do.
	HideMetrics bool
	// Version of the program.
	Version string
}

// defaultTitle is that of a server without --title.
const defaultTitle = "Guix substitutes"

// Request is what a page may depend on.
type Request struct {
	// Rest is the path after its first segment, for routes that take one.
	Rest string
	// Query has the parameters of the URL.
	Query url.Values
	// Private says that the request comes from the control listener.
	Private bool
	// ShowsMetrics says that the page may show what /metrics and /health do.
	ShowsMetrics bool
	// URL is where clients reach the server, without a slash at the end. It is safe within
	// double quotes of a shell and of Scheme.
	URL string
	// IsURLGuessed says that the URL is not that of the options.
	IsURLGuessed bool

	depth int // number of segments of the path after the first
}

// Handler makes a page. Its error may be [ErrNotFound].
type Handler func(ctx context.Context, r *Request) (*Page, error)

// Page is what differs between pages.
type Page struct {
	// Title of the page; "" for that of the server alone.
	Title string
	// Template is one of [Parse], and Data the .Data in it.
	Template *template.Template
	Data     any
	// Script is the name of an asset; "" for none.
	Script string
	// Status of the answer; 0 for 200.
	Status int
	// Fault is the fault of the server that the page is about, which makes its status 500; nil for
	// none.
	Fault error
	// NoRobots asks crawlers to ignore the page: its links lead to all items and their nars.
	NoRobots bool
	// Redirect leads to another page instead: a path below the home page with its query, escaped.
	Redirect string
}

// Route is a page of a site.
type Route struct {
	// Name is the first segment of the path, "" for the home page. TakesRest says that others
	// must follow.
	Name      string
	TakesRest bool
	// Label is the text of the link in the navigation; "" for none.
	Label string
	// Minimal says that the page exists with [Minimal], too.
	Minimal bool
	Make    Handler
}

// Site is the pages of a server. Use [New] to make one, and Add before it serves.
type Site struct {
	options Options
	routes  []Route
	assets  map[string]asset
	// turns bounds how many public pages are made at a time, or rest, so that requests of Guix keep
	// processors however many robots read pages.
	turns chan struct{}
}

// New makes a site without pages.
func New(options Options) *Site {
	if options.Title == "" {
		options.Title = defaultTitle
	}
	s := &Site{options: options, assets: make(map[string]asset), turns: make(chan struct{}, max(1, runtime.GOMAXPROCS(0)/2))}
	s.AddAsset("style.css", "text/css; charset=utf-8", style)
	s.AddAsset("icon.svg", "image/svg+xml", icon)
	s.AddAsset("copy.js", "text/javascript; charset=utf-8", copyScript)
	return s
}

// Size returns which pages there are.
func (s *Site) Size() Size { return s.options.Size }

// Add adds a page. The navigation has the order of the calls, after the home page.
func (s *Site) Add(r Route) {
	switch {
	case s.options.Size == Off, s.options.Size == Minimal && !r.Minimal:
	case r.Name == "":
		s.routes = slices.Insert(s.routes, 0, r)
	default:
		s.routes = append(s.routes, r)
	}
}

var (
	//go:embed layout.html notfound.html
	templates embed.FS
	//go:embed style.css
	style []byte
	//go:embed icon.svg
	icon []byte
	//go:embed copy.js
	copyScript []byte

	notFound = Parse(templates, "notfound.html")
)

// Parse parses templates together with the layout, which shows the template "content". The
// dot of all of them is a [View].
func Parse(files fs.FS, names ...string) *template.Template {
	layout := template.Must(template.New("layout.html").Funcs(functions).ParseFS(templates, "layout.html"))
	return template.Must(layout.ParseFS(files, names...))
}

// View is the dot in templates.
type View struct {
	*Page
	*Request
	site *Site
	name string // of the route
}

// Site returns the options.
func (v *View) Site() Options { return v.site.options }

// Root is the relative URL of the home page. Links begin with it, as the server may be
// below a path of a proxy.
func (v *View) Root() string {
	if v.depth > 0 {
		return strings.Repeat("../", v.depth)
	}
	return "./"
}

// Asset returns the URL of an asset.
func (v *View) Asset(name string) string { return v.Root() + v.site.assetPath(name) }

// Links returns the pages for the navigation.
func (v *View) Links() (links []Link) {
	for _, r := range v.site.routes {
		if r.Label != "" {
			links = append(links, Link{v.Root() + r.Name, r.Label, r.Name == v.name})
		}
	}
	return links
}

// Has reports whether the site has a page, such as "search", for links to it.
func (v *View) Has(name string) bool {
	for _, r := range v.site.routes {
		if r.Name == name {
			return true
		}
	}
	return false
}

// ContactURL returns the URL of the contact, or "".
func (v *View) ContactURL() template.URL {
	contact := v.site.options.Contact
	if parsed, err := url.Parse(contact); err == nil && (parsed.Scheme == "https" || parsed.Scheme == "http") && parsed.Host != "" {
		return template.URL(parsed.String())
	}
	if at := strings.IndexByte(contact, '@'); at > 0 && at < len(contact)-1 && !strings.ContainsAny(contact, " <>\"?&%:/") {
		return template.URL("mailto:" + contact)
	}
	return ""
}

// Link is an entry of the navigation.
type Link struct {
	URL, Label string
	Current    bool
}

// find returns the route of a path, by its segments, or nil.
func (s *Site) find(segments []string) *Route {
	for i := range s.routes {
		r := &s.routes[i]
		hasRest := len(segments) > 1 && segments[len(segments)-1] != ""
		if r.Name == segments[0] && r.TakesRest == hasRest && (hasRest || len(segments) == 1) {
			return r
		}
	}
	return nil
}

// render makes the page of a request. A page that is not found has the status 404. With the
// status 302, body is the relative URL of another page. With an error, body is nil, unless the
// error is [Page.Fault].
func (s *Site) render(ctx context.Context, r *Route, request *Request) (body []byte, status int, err error) {
	made, err := r.Make(ctx, request)
	if errors.Is(err, ErrNotFound) {
		made, err = &Page{Title: "Not found", Template: notFound, Status: http.StatusNotFound}, nil
	}
	if err != nil {
		return nil, 0, err
	}
	status = cmp.Or(made.Status, http.StatusOK)
	if made.Fault != nil {
		status = http.StatusInternalServerError
	}
	view := &View{Page: made, Request: request, site: s, name: r.Name}
	if made.Redirect != "" {
		return []byte(view.Root() + made.Redirect), http.StatusFound, nil
	}
	var text bytes.Buffer
	if err := made.Template.Execute(&text, view); err != nil {
		return nil, 0, err
	}
	return text.Bytes(), status, made.Fault
}
