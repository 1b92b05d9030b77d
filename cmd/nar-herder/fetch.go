package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/term"

	"nar-herder/mirror/nars"
	"nar-herder/narinfo"
	"nar-herder/peer"
	"nar-herder/storage/owner"
	"nar-herder/upstream"
	"nar-herder/upstream/fetch"
	"nar-herder/upstream/files"
)

type fetchCommand struct {
	databaseOption `embed:""`
	keyOptions     `embed:""`

	Storage  string          `group:"storage" placeholder:"DIR|s3://BUCKET" help:"Directory or s3://BUCKET/PREFIX?… of the stored nars."`
	From     []upstreamValue `group:"upstreams" sep:"none" placeholder:"URL" help:"Substitute server to fetch from, of any kind: https://HOST, or file:// with a directory. May be repeated, in order of preference (default: --upstream)."`
	Upstream []upstreamValue `group:"upstreams" sep:"none" placeholder:"URL" help:"Like --from, for an environment or file that sets the upstreams of run-server."`
	Closure  bool            `group:"items" argumentsonly:"" help:"Also fetch all items that they refer to."`
	Tag      []tagValue      `group:"work" sep:"none" placeholder:"KEY=VALUE" help:"Tag to add to the items, with --closure to all that they refer to as well. May be repeated."`
	Pin      bool            `group:"work" argumentsonly:"" help:"Pin the named items: protect them, and everything they refer to, from removal."`

	redirectsOption `embed:""`

	Items []string `arg:"" optional:"" name:"store-path" help:"Store paths, their base names, or their hashes; - or nothing reads a text with store paths from standard input."`
}

// Help is shown below the options.
func (fetchCommand) Help() string {
	return `Fetches narinfos and nars before clients request them, beside a running server or without one. Signatures are verified, and nars are compared with their NarHash while they arrive. Of the nars that a narinfo names, the smallest is stored. What is stored already is skipped: after an interruption, the same command resumes.

The text on standard input may be a list of store paths, or what a Guix command prints. Derivations (.drv) are skipped.

    guix build --dry-run --manifest=FILE 2>&1 | nar-herder fetch --closure -
    guix weather --display-missing --substitute-urls=http://this-server --manifest=FILE | nar-herder fetch -

Exit status: 0, everything is stored; 1, something could not be fetched.`
}

func (c *fetchCommand) Run(ctx context.Context, s *streams) (err error) {
	if c.Storage == "" {
		return usagef("fetch: no --storage is given to store the nars in")
	}
	from := c.From
	if len(from) == 0 {
		from = c.Upstream
	}
	if len(from) == 0 {
		return usagef("fetch: no server to fetch from is given: add --from=URL, or set upstream in the file of --config")
	}
	keys, err := c.keys()
	if err != nil {
		return err
	}
	report := &fetchReport{s: s, progress: newProgress(s.err, "fetching", "items", 0)}
	paths, err := c.paths(ctx, s, report)
	if err != nil {
		return err
	}
	log := slog.New(newLogHandler(s.err, slog.LevelWarn))
	store, err := open(ctx, c.Database, c.Storage, opening{policy: owner.Always, keys: keys}, log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, store.close()) }()
	if err := store.claim.Acquire(ctx); err != nil {
		return err
	}
	if keys == nil {
		printf(s.err, "nar-herder: warning: no keys are authorized, so narinfos with the signature of any key are accepted: add --acl=/etc/guix/acl or --authorized-key=FILE\n")
	}
	err = c.fetch(ctx, store, from, paths, report)
	report.progress.end()
	if c.Pin && ctx.Err() == nil {
		_, restoreErr := restore(ctx, store, report.pinned)
		err = errors.Join(err, restoreErr)
	}
	report.summarize()
	switch {
	case ctx.Err() != nil:
		return errors.New("fetch: interrupted: the same command resumes")
	case errors.Is(err, nars.ErrFull):
		return fmt.Errorf("fetch: %w: make room, and run the same command again", err)
	case err != nil:
		return fmt.Errorf("fetch: %w", err)
	case report.failed > 0:
		return statusFailed
	}
	return nil
}

// paths returns the items to fetch. It reports those that can't be fetched.
func (c *fetchCommand) paths(ctx context.Context, s *streams, report *fetchReport) ([]narinfo.StorePath, error) {
	names := c.Items
	if len(names) == 0 {
		if file, ok := s.in.(*os.File); ok && term.IsTerminal(int(file.Fd())) {
			return nil, usagef("fetch: no store path is given, and standard input is a terminal")
		}
		names = []string{"-"}
	}
	list, err := readPaths(ctx, s, names)
	if err != nil {
		return nil, err
	}
	for _, path := range list.Invalid {
		report.fail(path, errors.New("not a store item"))
	}
	if list.Derivations > 0 {
		printf(s.out, "skipped %s: substitute servers have only what these build\n", countOf(list.Derivations, "derivation"))
	}
	return list.Paths, nil
}

// readPaths returns the items that the command line names, where - stands for a text with store
// paths on standard input.
func readPaths(ctx context.Context, s *streams, names []string) (*fetch.List, error) {
	list := new(fetch.List)
	for _, name := range names {
		if name == "-" {
			if err := readList(ctx, s.in, list); err != nil {
				return nil, fmt.Errorf("read the list of store paths: %w", err)
			}
			if !list.HasText {
				return nil, errors.New("standard input is empty; 'guix build --dry-run' prints its list to standard error: add 2>&1")
			}
			continue
		}
		hash, err := parseItem(name)
		if err != nil {
			return nil, usageError{err}
		}
		path, err := narinfo.ParseBaseName(strings.TrimPrefix(name, narinfo.StoreDir+"/"))
		if err != nil {
			path = narinfo.StorePath{Hash: hash} // it is a hash
		}
		list.Add(path)
	}
	return list, nil
}

// readList reads a list. It returns when the context ends, even while it waits for a terminal.
// Then the list must not be used.
func readList(ctx context.Context, from io.Reader, list *fetch.List) error {
	done := make(chan error, 1)
	go func() { done <- list.Read(from) }()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case err := <-done:
		return err
	}
}

// fetchAnswerTimeout is how long many narinfos may take. No client waits for them.
const fetchAnswerTimeout = 5 * time.Minute

// fetch fetches the items.
func (c *fetchCommand) fetch(ctx context.Context, store *opened, from []upstreamValue, paths []narinfo.StorePath, report *fetchReport) error {
	options := upstream.Options{
		Keys: store.Keys(), Instance: store.index.Instance(), AllowPrivateRedirects: c.AllowPrivateRedirects,
		AnswerTimeout: fetchAnswerTimeout,
	}
	for _, server := range from {
		options.URLs = append(options.URLs, server.url)
	}
	set := upstream.New(options)
	defer set.Close()
	ctx, cancel := context.WithCancel(ctx)
	var probing sync.WaitGroup
	probing.Go(func() { set.Run(ctx) })
	defer probing.Wait()
	defer cancel()
	self := peer.Self{Instance: options.Instance, AllowPrivateRedirects: c.AllowPrivateRedirects}
	fetcher, err := nars.New(store.Storage, files.New(files.Options{Upstreams: set.Upstreams(), Self: self, Origins: store.index.Origins}), nars.Options{
		Limit: -1, Decode: decodeNar, Received: report.progress.moved,
		Spool: c.Database + ".spool", // as the server's
	})
	if err != nil {
		return err
	}
	defer fetcher.Close()
	return fetch.Run(ctx, paths, fetch.Options{
		Storage: store.Storage, Narinfos: set, Nars: fetcher,
		Closure: c.Closure, Tags: tags(c.Tag), Pin: c.Pin,
		Expect: func(items int) { report.progress.expect(int64(items)) }, Report: report.add,
	})
}

// fetchReport prints and counts results.
type fetchReport struct {
	s                      *streams
	progress               *progress
	fetched, known, failed int
	bytes                  int64
	pinned                 []narinfo.PathHash
}

func (r *fetchReport) add(result fetch.Result) {
	r.progress.add(0) // its bytes were counted as they arrived
	if result.Pinned {
		r.pinned = append(r.pinned, result.Path.Hash)
	}
	switch {
	case result.Err != nil && result.Path.Name == "":
		r.fail(result.Path.Hash.String(), result.Err)
	case result.Err != nil:
		r.fail(result.Path.String(), result.Err)
	case result.Fetched:
		r.fetched++
		r.bytes += result.Bytes
	default:
		r.known++
	}
}

func (r *fetchReport) fail(name string, err error) {
	r.failed++
	r.progress.clear()
	printf(r.s.err, "nar-herder: fetch %s: %s\n", name, oneLine(err))
}

func (r *fetchReport) summarize() {
	failed := ""
	if r.failed > 0 {
		failed = fmt.Sprintf("%d failed, ", r.failed)
	}
	printf(r.s.out, "%s%d fetched, %d known; %s of nars added to the storage\n", failed, r.fetched, r.known, byteCount(r.bytes))
}
