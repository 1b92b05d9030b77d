package main

import (
	"log/slog"
	"strings"
	"time"

	"nar-herder/httpapi/page"
	"nar-herder/httpapi/page/figures"
	"nar-herder/httpapi/page/history"
	"nar-herder/httpapi/page/overview"
	mirror "nar-herder/mirror/health"
	"nar-herder/storage/census"
)

// pageOptions are the options about the pages for browsers.
type pageOptions struct {
	Page      string         `group:"page" default:"full" enum:"full,minimal,off" placeholder:"full|minimal|off" help:"Pages for browsers: all (full), only how to use this server and what it has (minimal), or none (off) (default: ${default})."`
	Title     lineValue      `group:"page" placeholder:"TEXT" help:"Name of this server on its pages."`
	Contact   lineValue      `group:"page" placeholder:"TEXT" help:"Mail address, URL or text on the pages that says how to reach you."`
	PublicURL publicURLValue `group:"page" name:"public-url" placeholder:"URL" help:"URL at which clients reach this server, for the commands on its pages (default: the address in the request)."`
}

// lineValue is a text of one line.
type lineValue string

func (l *lineValue) UnmarshalText(text []byte) error {
	*l = lineValue(text)
	return page.CheckText(string(text))
}

// publicURLValue is a URL that is safe in commands.
type publicURLValue string

func (p *publicURLValue) UnmarshalText(text []byte) error {
	parsed, err := page.ParseURL(string(text))
	*p = publicURLValue(parsed)
	return err
}

// newSite returns the site without its pages. The server needs it, and the pages need the
// server.
func (o *pageOptions) newSite(hideMetrics bool) *page.Site {
	size := map[string]page.Size{"full": page.Full, "minimal": page.Minimal}[o.Page]
	return page.New(page.Options{
		Size: size, Title: string(o.Title), Contact: string(o.Contact), URL: string(o.PublicURL), HideMetrics: hideMetrics, Version: version(),
	})
}

// addPages adds the pages to the site.
func (s *subsystems) addPages(config *serverConfig, log *slog.Logger) {
	reader := &figures.Reader{From: s.server.Registry()}
	s.history = history.New(func() history.Sample { return history.Sample{At: time.Now(), Snapshot: s.server.Snapshot()} })
	s.census = census.New(s.store.index, log)
	sources := &overview.Sources{
		Keys: config.keys.published, Figures: reader.Figures, History: s.history, Health: s.server.Health().States, Census: s.census.Counts,
		Newest: s.store.index.Newest, Events: config.events.Events, Options: shownOptions(config.effect), Started: time.Now(),
		Workers: &overview.Workers{Index: s.store.index, Cache: s.cache, Fetcher: s.fetcher, Scrubber: s.scrubber, Remover: s.remover, Evictor: s.evictor},
	}
	if s.follower != nil {
		sources.Mirror = func() mirror.Status { return s.follower.Status() }
	}
	if s.upstreams != nil {
		sources.Upstreams = s.upstreams.Status
	}
	s.addItemPages(config.keys.published)
	overview.Add(s.site, sources)
}

// shownOptions returns the options for the administrator.
func shownOptions(effect inEffect) (options []overview.Option) {
	for _, o := range effect.options {
		if o.origin != "" {
			options = append(options, overview.Option{Name: o.flag.Name, Value: strings.Join(o.values, "; "), Origin: o.origin})
		}
	}
	return options
}
