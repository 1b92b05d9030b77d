package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"time"

	"nar-herder/internal/redact"
	"nar-herder/narinfo"
	"nar-herder/removal"
	"nar-herder/storage"
)

type removeCommand struct {
	databaseOption `embed:""`

	Storage    string     `placeholder:"DIR|s3://BUCKET" help:"Directory or s3://BUCKET/PREFIX?… of the stored nars."`
	Tag        []tagValue `argumentsonly:"" sep:"none" placeholder:"KEY=VALUE" help:"Items that have the tag, beside those that are named. May be repeated: then items that have all of them."`
	AfterGrace bool       `help:"Have clients no longer be told of the items, and the running server remove them once none can hold their narinfos."`
	DryRun     bool       `help:"Change nothing, and tell what would be."`
	Force      bool       `argumentsonly:"" help:"Remove also what is pinned, or needed by what is."`
	JSON       bool       `name:"json" help:"The summary as a JSON object, and no line for each item."`
	Items      []string   `arg:"" optional:"" name:"store-path" help:"Store paths, or their base names, or their hashes; - to read them from the standard input, one a line."`
}

// listedBroken is how many items that refer to removed ones are named.
const listedBroken = 10

// removed is what a removal came to, for programs.
type removed struct {
	DryRun     bool  `json:"dry_run"`
	AfterGrace bool  `json:"after_grace"`
	Items      int   `json:"items"`
	Bytes      int64 `json:"bytes"`
	Failed     int   `json:"failed"`
	// Due is when the last of the items goes, as far as that is known.
	Due *time.Time `json:"due,omitempty"`
	// Broken counts items that stay and refer to one that goes; BrokenItems are
	// the first of them.
	Broken      int      `json:"broken"`
	BrokenItems []string `json:"broken_items"`
}

func (c *removeCommand) Run(ctx context.Context, s *streams) (err error) {
	if c.Force && c.AfterGrace {
		return usagef("--force and --after-grace don't go together: what a pin keeps would be taken back: unpin it")
	}
	if len(c.Items) == 0 && len(c.Tag) == 0 {
		return usagef("remove: no <store-path> is named: give some, --tag=KEY=VALUE, or - to read a list from the standard input")
	}
	summary := &removed{DryRun: c.DryRun, AfterGrace: c.AfterGrace, BrokenItems: []string{}}
	failed := func(what string, err error) {
		summary.Failed++
		printf(s.err, "nar-herder: remove %s: %s\n", what, oneLine(err))
	}
	list := newItemList()
	for _, name := range c.Items {
		if name == "-" {
			if err := list.read(ctx, s.in, failed); err != nil {
				return fmt.Errorf("remove: read the list of items: %w: nothing was removed", err)
			}
			continue
		}
		if err := list.add(name); err != nil {
			return usagef("remove: %w", err)
		}
	}
	log := slog.New(newLogHandler(s.err, slog.LevelInfo))
	openStore := openExisting
	if c.DryRun {
		openStore = openForReading
	}
	store, err := openStore(ctx, c.Database, c.Storage, log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, store.close()) }()
	if err := store.mayWrite(ctx); err != nil {
		return err
	}
	if len(c.Tag) > 0 {
		for item, err := range store.index.Items(ctx, tags(c.Tag)...) {
			if err != nil {
				return err
			}
			list.addHash(item.Hash)
		}
	}

	// A line for each of a million items is not worth a write each.
	out := bufio.NewWriter(s.out)
	gone := make(map[narinfo.PathHash]struct{}, len(list.hashes))
	named := &removal.Named{Storage: store.Storage, Index: store.index, AfterGrace: c.AfterGrace, Force: c.Force, DryRun: c.DryRun}
	doErr := named.Do(ctx, list.hashes, func(r storage.Removal) {
		if r.Err != nil {
			failed(itemName(r), explainRemoval(r.Err))
		}
		if r.Err == nil || r.Left {
			c.report(out, summary, r)
			gone[r.Hash] = struct{}{}
		}
	})
	if doErr != nil {
		return errors.Join(fmt.Errorf("remove: %d items were %s, then: %w", summary.Items, c.verb(), doErr), out.Flush())
	}
	if len(gone) > 0 || summary.Failed == 0 || c.JSON { // or all has been said
		if err := c.finish(ctx, out, store, summary, gone); err != nil {
			return errors.Join(err, out.Flush())
		}
	}
	if err := out.Flush(); err != nil {
		return err
	}
	if summary.Failed > 0 {
		return statusFailed
	}
	return nil
}

func (c *removeCommand) verb() string {
	if c.AfterGrace {
		return "withdrawn"
	}
	return "removed"
}

// report counts an item that goes, and says so.
func (c *removeCommand) report(out io.Writer, summary *removed, r storage.Removal) {
	before := c.AfterGrace && !r.WithdrawnAt.IsZero()
	if !before {
		summary.Items++
		summary.Bytes += r.Bytes
	}
	switch {
	case c.JSON:
	case before:
		printf(out, "%s was withdrawn before, at %s\n", r.StorePath, r.WithdrawnAt.Format(time.RFC3339))
	case c.DryRun && c.AfterGrace:
		printf(out, "would withdraw %s, %s of nars\n", r.StorePath, byteCount(r.Bytes))
	case c.DryRun:
		printf(out, "would remove %s, %s of nars\n", r.StorePath, byteCount(r.Bytes))
	case c.AfterGrace:
		printf(out, "withdrew %s, %s of nars\n", r.StorePath, byteCount(r.Bytes))
	default:
		printf(out, "removed %s, %s of nars\n", r.StorePath, byteCount(r.Bytes))
	}
}

// finish says what it all came to.
func (c *removeCommand) finish(ctx context.Context, out io.Writer, store *opened, summary *removed, gone map[narinfo.PathHash]struct{}) error {
	if c.AfterGrace && summary.Items > 0 {
		grace, err := store.Grace(ctx)
		if err != nil {
			return err
		}
		if grace > 0 {
			due := time.Now().Add(grace).UTC().Truncate(time.Second)
			summary.Due = &due
		}
	}
	broken, count, err := removal.Broken(ctx, store.index, gone, listedBroken)
	if err != nil {
		return err
	}
	summary.Broken = count
	for _, hash := range broken {
		path, err := pathOf(ctx, store, hash)
		if err != nil {
			return err
		}
		summary.BrokenItems = append(summary.BrokenItems, path)
	}
	if c.JSON {
		return json.NewEncoder(redact.JSON{W: out}).Encode(summary)
	}
	would, will, is := "", "are", "is"
	if c.DryRun {
		would, will, is = "would be ", "would be", "would be"
	}
	printf(out, "%s %s%s, %s", countOf(summary.Items, "item"), would, c.verb(), byteCount(summary.Bytes))
	switch {
	case !c.AfterGrace:
		fmt.Fprintln(out, " freed")
	case summary.Due != nil:
		printf(out, " of nars, which %s freed by the running server about %s\n", will, summary.Due.Format(time.RFC3339))
	default:
		printf(out, " of nars, which %s freed by a running server once no client can hold the narinfos\n", will)
	}
	if count > 0 {
		if count == 1 {
			printf(out, "1 item that stays refers to what %s gone:\n", is)
		} else {
			printf(out, "%d items that stay refer to what %s gone:\n", count, is)
		}
		for _, path := range summary.BrokenItems {
			printf(out, "  %s\n", path)
		}
		if more := count - len(summary.BrokenItems); more > 0 {
			printf(out, "  and %d more\n", more)
		}
	}
	return nil
}

// countOf writes a number of things.
func countOf(n int, thing string) string {
	if n == 1 {
		return "1 " + thing
	}
	return fmt.Sprintf("%d %ss", n, thing)
}

// itemName is what an error calls an item.
func itemName(r storage.Removal) string {
	if r.StorePath != (narinfo.StorePath{}) {
		return r.StorePath.String()
	}
	return r.Hash.String()
}

// explainRemoval says what to do.
func explainRemoval(err error) error {
	var pinned *removal.PinnedError
	switch {
	case errors.Is(err, storage.ErrElsewhere):
		return fmt.Errorf("%w: name it with --storage", err)
	case errors.As(err, &pinned):
		return fmt.Errorf("%w: unpin that, or use --force", err)
	}
	return err
}

// pathOf is an item's store path, or its hash when it is not known.
func pathOf(ctx context.Context, store *opened, hash narinfo.PathHash) (string, error) {
	item, err := store.Item(ctx, hash)
	if errors.Is(err, storage.ErrNotFound) {
		return hash.String(), nil
	} else if err != nil {
		return "", err
	}
	return item.Narinfo.StorePath.String(), nil
}

// itemList is a list of items, each once.
type itemList struct {
	hashes []narinfo.PathHash
	known  map[narinfo.PathHash]struct{}
}

func newItemList() *itemList { return &itemList{known: make(map[narinfo.PathHash]struct{})} }

func (l *itemList) add(name string) error {
	hash, err := parseItem(name)
	if err == nil {
		l.addHash(hash)
	}
	return err
}

func (l *itemList) addHash(hash narinfo.PathHash) {
	if _, known := l.known[hash]; !known {
		l.known[hash] = struct{}{}
		l.hashes = append(l.hashes, hash)
	}
}

// longestLine bounds a line of a list, in bytes: store paths have fewer than 300.
const longestLine = 4096

// read adds the items of a list, one a line. Empty lines and those that begin
// with # are passed over. Lines that name no item are told to failed. The context
// ends it, also while it waits for a terminal.
func (l *itemList) read(ctx context.Context, from io.Reader, failed func(what string, err error)) error {
	done := make(chan error, 1)
	type fault struct {
		number int
		err    error
	}
	// What it has read is looked at once it is done: it may go on reading when
	// nobody waits for it any more.
	read := newItemList()
	var faults []fault
	go func() {
		reader := bufio.NewReaderSize(from, longestLine)
		for number := 1; ; number++ {
			text, cut, err := reader.ReadLine()
			line := strings.TrimSpace(string(text))
			for rest := cut; rest && err == nil; {
				_, rest, err = reader.ReadLine()
			}
			if err != nil && !errors.Is(err, io.EOF) {
				done <- err
				return
			}
			switch {
			case cut:
				faults = append(faults, fault{number, fmt.Errorf("it is longer than %d bytes", longestLine)})
			case line == "" || line[0] == '#':
			default:
				if err := read.add(line); err != nil {
					faults = append(faults, fault{number, err})
				}
			}
			if err != nil {
				done <- nil
				return
			}
		}
	}()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case err := <-done:
		if err != nil {
			return err
		}
	}
	for _, fault := range faults {
		failed(fmt.Sprintf("line %d of the list", fault.number), fault.err)
	}
	if len(l.hashes) == 0 { // a long one is not copied
		*l = *read
		return nil
	}
	for _, hash := range read.hashes {
		l.addHash(hash)
	}
	return nil
}
