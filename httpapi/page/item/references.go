package item

import (
	"context"
	"net/url"
	"strconv"

	"nar-herder/narinfo"
	"nar-herder/storage/index"
)

const (
	// perPage is how many references or referrers a page lists.
	perPage = 25
	// mostFollowed bounds how many items of a closure are counted, and mostOnRequest if the
	// reader asks for all, which takes about 0.1 s.
	mostFollowed, mostOnRequest = 50, 5000
)

// list is a page of the items that an item refers to, or that refer to it.
type list struct {
	Name  string // of its parameter in the query
	Total int    // -1 if it is not counted
	Items []listed
	// First is the number of the first one, counted from 1; 0 if it is not counted.
	First int
	// Back and Next are the queries of the pages before and after this one, "" for none.
	Back, Next string
}

// Last is the number of the last item on the page.
func (l *list) Last() int { return l.First + len(l.Items) - 1 }

// listed is an item in a list.
type listed struct {
	narinfo.StorePath
	IsItself  bool
	IsMissing bool // the server has no narinfo of it
}

// references returns a page of the references.
func (o *Options) references(ctx context.Context, n *narinfo.Narinfo, number int, private bool) (l list, err error) {
	l.Name, l.Total = "references", len(n.References)
	start := min(number-1, max(0, l.Total-1)/perPage) * perPage // the last page, if there are not so many
	shown := n.References[start:min(start+perPage, l.Total)]
	l.First = start + 1
	look := o.Storage.Index().HiddenReferences
	if private { // lost items have pages for the administrator
		look = o.Storage.Index().MissingReferences
	}
	lacking, err := look(ctx, &narinfo.Narinfo{StorePath: n.StorePath, References: shown})
	if err != nil {
		return l, err
	}
	isMissing := make(map[narinfo.PathHash]bool, len(lacking))
	for _, path := range lacking {
		isMissing[path.Hash] = true
	}
	for _, path := range shown {
		l.Items = append(l.Items, listed{path, path == n.StorePath, isMissing[path.Hash]})
	}
	page := start/perPage + 1
	if page > 1 {
		l.Back = query(l.Name, strconv.Itoa(page-1))
	}
	if start+perPage < l.Total {
		l.Next = query(l.Name, strconv.Itoa(page+1))
	}
	return l, nil
}

// referrers returns a page of the items that refer to the item, the newest first.
func (o *Options) referrers(ctx context.Context, path narinfo.StorePath, before string) (l list, err error) {
	l.Name, l.Total = "referrers", -1
	position, err := strconv.ParseInt(before, 10, 64)
	if err != nil || position < 0 {
		position = 0
	}
	items, more, err := o.Storage.Index().ReferrersBefore(ctx, path.Hash, position, perPage)
	if err != nil {
		return l, err
	}
	for _, item := range items {
		l.Items = append(l.Items, listed{StorePath: narinfo.StorePath{Hash: item.Hash, Name: item.Name}})
	}
	if position > 0 {
		l.Back = query(l.Name, "0")
	} else if !more {
		l.Total = len(items)
	}
	if more {
		l.Next = query(l.Name, strconv.FormatInt(items[len(items)-1].Position, 10))
	}
	return l, nil
}

func query(name, value string) string { return "?" + url.Values{name: {value}}.Encode() }

// closure is the item with all that it needs.
type closure struct {
	index.ClosureSize
	// MayCountAll says that the reader can ask for items that were not counted.
	MayCountAll bool
}

// closure counts the items of a closure.
func (o *Options) closure(ctx context.Context, hash narinfo.PathHash, countAll bool) (*closure, error) {
	most := mostFollowed
	if countAll {
		most = mostOnRequest
	}
	size, err := o.Storage.Index().ClosureSize(ctx, hash, most)
	if err != nil {
		return nil, err
	}
	return &closure{size, !size.Complete && !countAll}, nil
}

// Others is the number of missing items that are not listed.
func (c *closure) Others() int { return c.MissingCount - len(c.Missing) }
