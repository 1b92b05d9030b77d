package main

import (
	"context"

	"nar-herder/httpapi/page"
	"nar-herder/httpapi/page/item"
	"nar-herder/httpapi/page/search"
	"nar-herder/narinfo"
)

// addItemPages adds the pages that find and show items.
func (s *subsystems) addItemPages(published page.Keys) {
	if s.search == nil {
		return
	}
	text := s.store.Text
	if s.cache != nil {
		text = func(ctx context.Context, hash narinfo.PathHash) ([]byte, error) {
			text, _, _, err := s.cache.Text(ctx, hash)
			return text, err
		}
	}
	item.Add(s.site, item.Options{
		Storage: s.store.Storage, Text: text,
		HasRemote: s.fetcher != nil || s.passing != nil, HasUpstreams: s.finder != nil,
		Keys: published, KeyNames: published.Names(),
	})
	search.Add(s.site, s.search, s.store.index)
}
