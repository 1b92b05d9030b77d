// Package item makes the page of an item: what its narinfo says, who signed it, where its nars
// are, and what it refers to.
package item

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"nar-herder/httpapi/headers"
	"nar-herder/httpapi/page"
	"nar-herder/narinfo"
	"nar-herder/storage"
	"nar-herder/storage/index"
)

// Options of [Add].
type Options struct {
	Storage *storage.Storage
	// Text returns the narinfo that clients get, with a block for each cached nar, or
	// [storage.ErrNotFound].
	Text func(ctx context.Context, hash narinfo.PathHash) ([]byte, error)
	// HasRemote says that nars that are not stored may be fetched from other servers.
	HasRemote bool
	// HasUpstreams says that the server looks unknown items up when clients request them.
	HasUpstreams bool
	// Keys are the public keys that the server publishes, as texts, and KeyNames their names.
	Keys, KeyNames []string
}

var (
	//go:embed item.html unknown.html damaged.html
	files embed.FS

	content = page.Parse(files, "item.html")
	unknown = page.Parse(files, "unknown.html")
	damaged = page.Parse(files, "damaged.html")
)

// Add adds the page to a site.
func Add(site *page.Site, options Options) {
	site.Add(page.Route{Name: "item", TakesRest: true, Make: options.page})
}

// parse returns the item that a text names by its store path, base name or hash. The path of a
// file in an item names the item.
func parse(text string) (narinfo.StorePath, bool) {
	text = strings.TrimSpace(text)
	text = strings.TrimPrefix(strings.TrimPrefix(text, "/"), strings.TrimPrefix(narinfo.StoreDir, "/")+"/")
	text, _, _ = strings.Cut(text, "/")
	text = strings.TrimSuffix(text, ".narinfo")
	if hash, err := narinfo.ParsePathHash(text); err == nil {
		return narinfo.StorePath{Hash: hash}, true
	}
	path, err := narinfo.ParseBaseName(text)
	return path, err == nil
}

// page makes the page of the item that the request names.
func (o *Options) page(ctx context.Context, r *page.Request) (*page.Page, error) {
	path, ok := parse(r.Rest)
	if !ok {
		return nil, page.ErrNotFound
	}
	if r.Rest != path.Hash.String() {
		return &page.Page{Redirect: "item/" + path.Hash.String()}, nil
	}
	v := &view{URL: r.URL, Private: r.Private}
	err := o.read(ctx, path.Hash, r.Query, v)
	if errors.Is(err, storage.ErrNotFound) {
		return &page.Page{
			Title: "Unknown item", Template: unknown, Status: http.StatusNotFound,
			Data: struct {
				Hash         string
				HasUpstreams bool
			}{path.Hash.String(), o.HasUpstreams},
		}, nil
	}
	if errors.Is(err, index.ErrDamaged) {
		return &page.Page{
			Title: "Damaged item", Template: damaged, Fault: err,
			Data: struct {
				Hash string
				Err  error
			}{path.Hash.String(), err},
		}, nil
	}
	if err != nil {
		return nil, err
	}
	return &page.Page{Title: v.Path.Name, Template: content, Data: v, NoRobots: true}, nil
}

// view is what the page shows.
type view struct {
	URL     string // of the server
	Private bool

	Path    narinfo.StorePath
	AddedAt time.Time
	NarSize int64 // -1 if unknown
	Files   []file
	// Smallest is the file with the fewest bytes; nil if no size is known.
	Smallest  *file
	Signature signature
	Fields    []field

	References, Referrers list
	Closure               *closure // nil for none

	// Record is for the administrator; nil on public pages.
	Record *record
}

// Hash is the hash of the item's path.
func (v *view) Hash() string { return v.Path.Hash.String() }

// AddedOn is the day on which the item was added.
func (v *view) AddedOn() string { return v.AddedAt.UTC().Format(time.DateOnly) }

// decompressors are the commands that decompress standard input.
var decompressors = map[string]string{"none": "", "gzip": " | gzip -dc", "lzip": " | lzip -dc", "zstd": " | zstd -dc", "xz": " | xz -dc", "bzip2": " | bzip2 -dc"}

// Unpack is a command that unpacks the smallest file; "" if there is none.
func (v *view) Unpack() string {
	if v.Smallest == nil {
		return ""
	}
	decompress, ok := decompressors[v.Smallest.Compression]
	if !ok {
		return ""
	}
	return fmt.Sprintf("wget -qO- %q%s \\\n  | guix archive --extract=%q", v.URL+"/"+v.Smallest.Link, decompress, v.Path.Name)
}

// record is what only the administrator sees.
type record struct {
	index.Record
	*index.Item
	OriginURL string // of the upstream that the item came from; "" for none
	// Verdict says whether the authorized keys have signed the narinfo.
	Verdict verdict
}

// file is a nar of the item.
type file struct {
	Compression string
	Size        int64  // -1 if unknown
	Link        string // below the root; "" if requests for it fail
	place
}

// Name is the compression, in words.
func (f *file) Name() string {
	if f.Compression == "none" {
		return "uncompressed"
	}
	return f.Compression
}

// place is where a nar is.
type place struct{ Place, Means, Class string }

var (
	stored     = place{"stored", "in the storage of this server", "good"}
	cached     = place{"cached", "made by this server from another compression", "good"}
	remote     = place{"remote", "fetched from another server when requested", "warn"}
	missing    = place{"missing", "not available here", "bad"}
	impossible = place{"elsewhere", "its URL leads to another server", "warn"}
)

// read reads all about an item. The error is [storage.ErrNotFound] for items that clients can't
// get, unless the administrator asks.
func (o *Options) read(ctx context.Context, hash narinfo.PathHash, query url.Values, v *view) error {
	text, err := o.Text(ctx, hash)
	isHidden := errors.Is(err, storage.ErrNotFound)
	if err != nil && !(isHidden && v.Private) {
		return err
	}
	item, err := o.Storage.Item(ctx, hash)
	if err != nil {
		return err
	}
	if isHidden {
		text = item.Announced()
	}
	announced, err := narinfo.Parse(text)
	if err != nil {
		return err
	}
	v.Path, v.AddedAt, v.NarSize = announced.StorePath, item.AddedAt, announced.NarSize
	if v.Files, err = o.files(item, announced); err != nil {
		return err
	}
	for i := range v.Files {
		f := &v.Files[i]
		if f.Size >= 0 && f.Link != "" && (v.Smallest == nil || f.Size < v.Smallest.Size) {
			v.Smallest = f
		}
	}
	v.Signature = o.signature(announced)
	v.Fields = fields(announced)
	if v.References, err = o.references(ctx, announced, number(query.Get("references")), v.Private); err != nil {
		return err
	}
	if v.Referrers, err = o.referrers(ctx, v.Path, query.Get("referrers")); err != nil {
		return err
	}
	if item.WithdrawnAt.IsZero() { // a withdrawn item has no closure
		if v.Closure, err = o.closure(ctx, hash, query.Get("closure") == "all"); err != nil {
			return err
		}
	}
	if v.Private {
		if v.Record, err = o.record(ctx, item, announced); err != nil {
			return err
		}
	}
	return nil
}

// files returns the files that clients can request.
func (o *Options) files(item *storage.Item, announced *narinfo.Narinfo) ([]file, error) {
	own := len(item.Narinfo.Files) // the others are cached nars, at the end
	if item.Dropped != 0 {
		n, err := narinfo.Parse(item.Announced())
		if err != nil {
			return nil, err
		}
		own = len(n.Files)
	}
	all := make([]file, 0, len(announced.Files)+1)
	hasStored := false
	for i, f := range announced.Files {
		shown := file{Compression: shorten(f.Compression, 30), Size: f.Size, place: impossible}
		name, err := f.Path()
		if err != nil {
			all = append(all, shown)
			continue
		}
		n := item.FileNamed(name)
		if n >= 0 && shown.Size < 0 {
			shown.Size = item.StoredSize(n)
		}
		switch {
		case i >= own:
			shown.place = cached
		case n >= 0 && item.HasStored(n):
			shown.place, hasStored = stored, true
		case n >= 0 && o.HasRemote:
			shown.place = remote
		default: // or a name that no storage can have
			shown.place = missing
		}
		if shown.place != missing {
			shown.Link = escape(name)
		}
		all = append(all, shown)
	}
	isPlain := func(f file) bool { return f.Compression == "none" }
	if hasStored && !slices.ContainsFunc(all, isPlain) {
		all = append(all, file{
			Compression: "none", Size: announced.NarSize, Link: escape("nar/" + announced.StorePath.BaseName()),
			place: place{"on demand", "decompressed by this server for each request", "good"},
		})
	}
	return all, nil
}

// escape returns the relative URL of a name.
func escape(name string) string { return strings.TrimPrefix(headers.EscapePath("/"+name), "/") }

// record reads what only the administrator sees.
func (o *Options) record(ctx context.Context, item *storage.Item, announced *narinfo.Narinfo) (*record, error) {
	x := o.Storage.Index()
	known, err := x.Record(ctx, item.Hash)
	if err != nil {
		return nil, err
	}
	r := &record{Record: known, Item: item.Item, Verdict: authorized(announced, o.Storage.Keys())}
	if item.Origin != 0 {
		origins, err := x.Origins(ctx)
		if err != nil {
			return nil, err
		}
		r.OriginURL = origins[item.Origin]
	}
	return r, nil
}

// number parses the number of a page, counted from 1. Anything else is the first.
func number(text string) int {
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 {
		return 1
	}
	return n
}
