// Package search makes the page that finds items by name, version or hash.
package search

import (
	"context"
	"embed"
	"errors"
	"net/http"
	"net/url"
	"strings"
	"time"

	"nar-herder/httpapi/page"
	"nar-herder/narinfo"
	"nar-herder/storage"
	"nar-herder/storage/index"
	"nar-herder/storage/search"
)

// Searcher finds items. [search.Index] implements it.
type Searcher interface {
	Search(ctx context.Context, query search.Query, after string, limit int) (search.Result, error)
	State() search.State
}

// Newest has the newest items. [index.Index] implements it.
type Newest interface {
	Newest(ctx context.Context, n int) ([]*index.Item, error)
}

var (
	//go:embed search.html
	files embed.FS
	//go:embed search.js
	script []byte

	content = page.Parse(files, "search.html")
)

const (
	scriptName = "search.js"
	// perPage is how many items a page lists, and mostNewest how many without a query.
	perPage    = 25
	mostNewest = 20
)

// Add adds the page to a site.
func Add(site *page.Site, searcher Searcher, newest Newest) {
	m := maker{searcher, newest}
	site.Add(page.Route{Name: "search", Label: "Search", Make: m.page})
	site.AddAsset(scriptName, "text/javascript; charset=utf-8", script)
}

type maker struct {
	Searcher
	newest Newest
}

// view is what the page shows.
type view struct {
	Query string
	Fault string // what is wrong with the query
	// IsNewest says that the items are the newest, as there is no query.
	IsNewest bool
	Items    []found
	Total    int64
	IsFirst  bool   // page of the results
	Next     string // query of the next page, "" for none
	State    search.State
}

// found is an item in the results.
type found struct {
	Hash          narinfo.PathHash
	Name, Version string
	NarSize       int64
	AddedAt       time.Time
}

// AddedOn is the day on which the item was added.
func (f *found) AddedOn() string { return f.AddedAt.UTC().Format(time.DateOnly) }

func (m *maker) page(ctx context.Context, r *page.Request) (*page.Page, error) {
	v := &view{Query: strings.TrimSpace(r.Query.Get("q")), State: m.State()}
	made := &page.Page{Title: "Search", Template: content, Data: v, Script: scriptName, NoRobots: true}
	after := r.Query.Get("after")
	v.IsFirst = after == ""
	query, err := search.ParseQuery(v.Query)
	if err != nil {
		v.Fault, made.Status = err.Error(), http.StatusBadRequest
		return made, nil
	}
	if query.IsEmpty() {
		return made, m.listNewest(ctx, v)
	}
	made.Title = v.Query
	if hash, ok := query.Hash(); ok {
		return &page.Page{Redirect: "item/" + hash.String()}, nil
	}
	result, err := m.Search(ctx, query, after, perPage)
	switch {
	case errors.Is(err, search.ErrCursor):
		v.Fault, made.Status = err.Error(), http.StatusBadRequest
		return made, nil
	case errors.Is(err, context.DeadlineExceeded):
		v.Fault, made.Status = "The server is busy: try again in a moment.", http.StatusServiceUnavailable
		return made, nil
	case err != nil:
		return nil, err
	}
	v.Total, v.State = result.Total, result.State
	for _, match := range result.Items {
		v.add(match.Narinfo, match.AddedAt)
	}
	if result.Next != "" {
		v.Next = "?" + url.Values{"q": {v.Query}, "after": {result.Next}}.Encode()
	}
	return made, nil
}

// listNewest lists the newest items.
func (m *maker) listNewest(ctx context.Context, v *view) error {
	items, err := m.newest.Newest(ctx, mostNewest)
	if err != nil {
		return err
	}
	v.IsNewest = true
	for _, row := range items {
		item, err := storage.NewItem(row)
		if err != nil {
			continue // the check of the index reports it
		}
		v.add(item.Narinfo, item.AddedAt)
	}
	v.Total = int64(len(v.Items))
	return nil
}

func (v *view) add(n *narinfo.Narinfo, at time.Time) {
	name, version := split(n.StorePath.Name)
	v.Items = append(v.Items, found{n.StorePath.Hash, name, version, n.NarSize, at})
}

// split splits the name of an item as Guix does: the version follows the first hyphen before a
// digit. It is "" for a name without one.
func split(item string) (name, version string) {
	for i := 1; i+1 < len(item); i++ {
		if c := item[i+1]; item[i] == '-' && '0' <= c && c <= '9' {
			return item[:i], item[i+1:]
		}
	}
	return item, ""
}
