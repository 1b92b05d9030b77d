package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"nar-herder/narinfo"
	"nar-herder/storage/index"
	"nar-herder/storage/search"
)

const (
	// browsers is how many people look at pages, each at another page every pageEvery: more than
	// people do, but they also search while they type. As many robots don't wait between pages.
	browsers  = 20
	pageEvery = time.Second
	// pageViews is how often each page is requested, and searches how many queries are made.
	pageViews = 100
	searches  = 400
	// pageBar, itemBar and searchBar are in milliseconds.
	pageBar, searchBar = 50, 100
	// searchBuildWait bounds the time of building a search index.
	searchBuildWait = 20 * time.Minute
)

// paging is the environment of the case page.
type paging struct {
	*bench
	database string
	hashes   []string // some of them, the first are those with the most referrers
	names    []string // of these items
	random   *rand.Rand
}

// page measures the search index of a million items, and the pages for browsers.
func (b *bench) page() error {
	p := &paging{bench: b, random: rand.New(rand.NewPCG(b.seed, 1))}
	done, err := p.generate()
	if err != nil {
		return err
	}
	defer done()
	if err := p.build(); err != nil {
		return err
	}
	s, err := b.narHerder(p.database, b.work)
	if err != nil {
		return err
	}
	defer s.stop()
	if _, err := p.indexed(s); err != nil {
		return err
	}
	if err := p.searchIndex(); err != nil {
		return err
	}
	paths, err := p.pages(s)
	if err != nil || len(paths) == 0 {
		return err
	}
	return p.browse(s, paths)
}

// generate makes the database, or reuses that of an earlier run with -keep.
func (p *paging) generate() (done func(), err error) {
	p.database = filepath.Join(p.trees, fmt.Sprintf("page-v%d-%d-seed%d.db", generatorVersion, p.index, p.seed))
	list := p.database + ".sample"
	done = func() {
		if !p.keep {
			names, _ := filepath.Glob(p.database + "*") // the pattern is valid
			for _, name := range names {
				_ = os.Remove(name) // the directory is removed later
			}
		}
	}
	var sample [][2]string
	if text, err := os.ReadFile(list); err == nil {
		err = json.Unmarshal(text, &sample)
		if err != nil {
			return nil, err
		}
	} else if sample, err = p.generateTo(p.database); err != nil {
		return nil, err
	} else if text, err := json.Marshal(sample); err != nil {
		return nil, err
	} else if err := os.WriteFile(list, text, 0o644); err != nil {
		return nil, err
	}
	for _, item := range sample {
		p.hashes, p.names = append(p.hashes, item[0]), append(p.names, item[1])
	}
	return done, nil
}

// generateTo makes a database, and returns the hashes and names of some of its items.
func (p *paging) generateTo(database string) (sample [][2]string, err error) {
	if err := ensureSpace(filepath.Dir(database), int64(p.index)*3<<10); err != nil {
		return nil, err
	}
	builder, err := index.Build(p.ctx, database)
	if err != nil {
		return nil, err
	}
	made := newGenerator(p.seed)
	for n := range p.index {
		item := made.next(-1)
		info, err := narinfo.Parse(item.text)
		if err == nil {
			entry := builder.Prepare(info)
			entry.AddedAt = time.Unix(int64(1e9+n), 0)
			row := builder.Row(entry)
			err = builder.Add(&row)
		}
		if err := errors.Join(err, p.ctx.Err()); err != nil {
			return nil, errors.Join(err, builder.Abort())
		}
		if n < 10 || n%max(p.index/2000, 1) == 0 {
			sample = append(sample, [2]string{item.hash, info.StorePath.Name})
		}
	}
	_, err = builder.Finish(p.ctx, nil)
	return sample, err
}

// indexed waits until the server has indexed all items, and returns how long that took.
func (p *paging) indexed(s *server) (time.Duration, error) {
	begun := time.Now()
	for {
		items, err := s.metric("narherder_search_indexed_items")
		if err != nil || items >= float64(p.index) {
			return time.Since(begun), err
		}
		if time.Since(begun) > searchBuildWait {
			return 0, fmt.Errorf("only %v of %d items are in the search index", items, p.index)
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-p.ctx.Done():
			return 0, p.ctx.Err()
		}
	}
}

// build measures how long the server takes to build the index, and what that costs narinfo
// requests.
func (p *paging) build() error {
	file := p.database + "-search"
	remove := func() error {
		if err := os.Remove(file); !errors.Is(err, os.ErrNotExist) {
			return err
		}
		return nil
	}
	if err := remove(); err != nil {
		return err
	}
	s, err := p.narHerder(p.database, p.work)
	if err != nil {
		return err
	}
	took, err := p.indexed(s)
	var peak int64
	if err == nil {
		peak, err = s.memory("VmHWM")
	}
	s.stop()
	if err != nil {
		return err
	}
	p.addFigure(fmt.Sprintf("building the search index of %d items", p.index), "s", took.Seconds(), 0, true)
	p.addFigure("resident memory meanwhile, at most", "MB", float64(peak)/1e6, 150, true)

	l, err := p.newLoad(p.narinfoPaths(), 1)
	if err != nil {
		return err
	}
	kept := file + ".kept"
	if err := os.Rename(file, kept); err != nil {
		return err
	}
	defer os.Remove(kept)
	var during, after []float64
	for range p.rounds {
		for _, building := range []bool{true, false} {
			if err := remove(); err != nil {
				return err
			}
			if !building {
				if err := os.Link(kept, file); err != nil {
					return err
				}
			}
			s, err := p.narHerder(p.database, p.work)
			if err != nil {
				return err
			}
			m, err := l.run(p.bench, s, p.duration)
			s.stop()
			if err != nil {
				return err
			}
			if building {
				during = append(during, m.rate)
			} else {
				after = append(after, m.rate)
			}
		}
	}
	if err := errors.Join(remove(), os.Rename(kept, file)); err != nil {
		return err
	}
	p.add("narinfos while the search index is built, against later", "requests/s ", during, after, 0.9, false)
	return nil
}

// narinfoPaths are the paths of some narinfos.
func (p *paging) narinfoPaths() []string {
	return shuffled(p.hashes, p.seed, func(hash string) string { return "/" + hash + ".narinfo" })
}

// queries is what people type: common and rare words, single letters, and everything else.
func (p *paging) query(n int) string {
	name := p.names[p.random.IntN(len(p.names))]
	switch n % 10 {
	case 0:
		return []string{"python", "lib", "rust-", "r-", "doc", "1.2", "server"}[p.random.IntN(7)]
	case 1:
		return name
	case 2:
		return "no-such-" + name
	case 3:
		return string(name[p.random.IntN(len(name))])
	case 4:
		return name[:2]
	case 5:
		return name[:1+p.random.IntN(len(name))] // while it is typed
	case 6:
		return strings.Repeat(name+" ", search.MaxQuery/(len(name)+1))
	case 7:
		return strings.Repeat("-. ", search.MaxQuery/3)
	case 8:
		return p.hashes[p.random.IntN(len(p.hashes))][:5+p.random.IntN(28)]
	}
	words := strings.FieldsFunc(name, func(r rune) bool { return r == '-' })
	slices.Reverse(words)
	return strings.Join(words, " ")
}

// searchIndex measures the size of the search index, and searches without pages.
func (p *paging) searchIndex() (err error) {
	database, err := os.Stat(p.database)
	if err != nil {
		return err
	}
	file, err := os.Stat(p.database + "-search")
	if err != nil {
		return err
	}
	p.addFigure("search index ÷ database", "×", float64(file.Size())/float64(database.Size()), 0.15, true)
	x, err := index.Open(p.ctx, p.database, index.Options{Access: index.Read})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, x.Close()) }()
	s := search.New(x, nil)
	ctx, stop := context.WithCancel(p.ctx)
	var running sync.WaitGroup
	running.Go(func() { s.Run(ctx) })
	defer func() {
		stop()
		running.Wait()
		err = errors.Join(err, s.Close())
	}()
	for end := time.Now().Add(searchBuildWait); s.State().Building; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) || p.ctx.Err() != nil {
			return errors.New("the search index is not complete")
		}
	}
	var took []float64
	var found int64
	for n := range searches {
		query, err := search.ParseQuery(p.query(n))
		if err != nil {
			return err
		}
		begun := time.Now()
		result, err := s.Search(p.ctx, query, "", 50)
		if err != nil {
			return err
		}
		took = append(took, float64(time.Since(begun).Microseconds())/1e3)
		found += result.Total
	}
	if found == 0 {
		return errors.New("the searches find nothing")
	}
	p.addFigure("search, median", "ms", median(took), 0, true)
	p.addFigure("search, 99 of 100", "ms", percentile(took, 99), searchBar, true)
	return nil
}

// pages measures each page that the server has, and returns random paths as people request them.
func (p *paging) pages(s *server) (visits []string, err error) {
	ours := func(path string) func(int) string { return func(int) string { return path } }
	for _, page := range []struct {
		name string
		path func(n int) string
		bar  float64
	}{
		{"home", ours("/"), pageBar},
		{"status", ours("/status"), pageBar},
		{"item", func(n int) string { return "/item/" + p.hashes[n*7%len(p.hashes)] }, pageBar},
		{"items with the most referrers", func(n int) string { return "/item/" + p.hashes[n%5] }, pageBar},
		{"search", func(n int) string { return "/search?q=" + url.QueryEscape(p.query(n)) }, searchBar},
	} {
		var took []float64
		for n := range pageViews {
			path := page.path(n)
			latency, status, err := view(p.ctx, s, path)
			if err != nil {
				return nil, err
			}
			if status == http.StatusNotFound && n == 0 {
				p.say("the server has no page %s", path)
				break
			}
			if status != http.StatusOK {
				return nil, fmt.Errorf("GET %s: status %d", path, status)
			}
			took = append(took, latency)
			visits = append(visits, path)
		}
		if len(took) > 0 {
			p.addFigure("page: "+page.name+", 99 of 100", "ms", percentile(took, 99), page.bar, true)
		}
	}
	return visits, nil
}

// view requests a page as a browser does, and returns how many milliseconds that took.
func view(ctx context.Context, s *server, path string) (took float64, status int, err error) {
	ctx, cancel := context.WithTimeout(ctx, getWait)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+s.address+path, nil)
	if err != nil {
		return 0, 0, err
	}
	request.Header.Set("Accept", "text/html,application/xhtml+xml,*/*;q=0.8")
	begun := time.Now()
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return 0, 0, err
	}
	_, err = io.Copy(io.Discard, response.Body)
	return float64(time.Since(begun).Microseconds()) / 1e3, response.StatusCode, errors.Join(err, response.Body.Close())
}

// browse measures narinfo requests with and without people who look at pages, and with robots
// that do so without a pause.
func (p *paging) browse(s *server, paths []string) error {
	l, err := p.newLoad(p.narinfoPaths(), 1)
	if err != nil {
		return err
	}
	if _, err := l.run(p.bench, s, time.Second); err != nil {
		return err
	}
	const none, people, robots = 0, 1, 2
	var rates, latencies [3][]float64
	for round := range p.rounds {
		for n := range 3 {
			who := (round + n) % 3
			stop := func() ([]float64, error) { return nil, nil }
			if who != none {
				stop = p.visit(s, paths, time.Duration(robots-who)*pageEvery)
			}
			m, err := l.run(p.bench, s, p.duration)
			seen, browseErr := stop()
			if err := errors.Join(err, browseErr); err != nil {
				return err
			}
			rates[who] = append(rates[who], m.rate)
			latencies[who] = append(latencies[who], seen...)
		}
	}
	p.add(fmt.Sprintf("narinfos with %d people browsing, a page a second each, against without", browsers), "requests/s ", rates[people], rates[none], 0.9, false)
	p.addFigure("their pages meanwhile, 99 of 100", "ms", percentile(latencies[people], 99), 0, true)
	p.add(fmt.Sprintf("narinfos with %d robots reading pages without a pause, against without", browsers), "requests/s ", rates[robots], rates[none], 0, false)
	p.addFigure("their pages meanwhile, 99 of 100", "ms", percentile(latencies[robots], 99), 0, true)
	return nil
}

// visit lets browsers read pages until stop is called, which returns the latencies of pages. Each
// waits between pages, on average as long as every.
func (p *paging) visit(s *server, paths []string, every time.Duration) (stop func() ([]float64, error)) {
	ctx, cancel := context.WithCancel(p.ctx)
	var mu sync.Mutex
	var latencies []float64
	var failure error
	var running sync.WaitGroup
	for n := range browsers {
		random := rand.New(rand.NewPCG(p.seed, uint64(n)))
		running.Go(func() {
			for {
				select {
				case <-ctx.Done():
					return
				case <-time.After(time.Duration(random.Float64() * float64(2*every))):
				}
				path := paths[random.IntN(len(paths))]
				took, status, err := view(ctx, s, path)
				if ctx.Err() != nil {
					return
				}
				if err == nil && status != http.StatusOK {
					err = fmt.Errorf("GET %s: status %d", path, status)
				}
				mu.Lock()
				latencies, failure = append(latencies, took), errors.Join(failure, err)
				mu.Unlock()
			}
		})
	}
	return func() ([]float64, error) {
		cancel()
		running.Wait()
		return latencies, failure
	}
}
