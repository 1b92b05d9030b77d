package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"nar-herder/narinfo"
)

// parseItem takes what people have at hand for a store item.
func parseItem(name string) (narinfo.PathHash, error) {
	base := strings.TrimPrefix(strings.TrimSuffix(name, ".narinfo"), narinfo.StoreDir+"/")
	if hash, err := narinfo.ParsePathHash(base); err == nil {
		return hash, nil
	}
	path, err := narinfo.ParseBaseName(base)
	if err != nil {
		return narinfo.PathHash{}, fmt.Errorf("%q is not a store item: name /gnu/store/HASH-NAME, HASH-NAME or HASH", name)
	}
	return path.Hash, nil
}

// readItems reads the items that are named on the command line, where - stands for a list
// on the standard input. Lines of it that name no item are reported to failed.
func readItems(ctx context.Context, s *streams, names []string, failed func(what string, err error)) (*itemList, error) {
	list := newItemList()
	for _, name := range names {
		if name == "-" {
			if err := list.read(ctx, s.in, failed); err != nil {
				return nil, fmt.Errorf("read the list of items: %w", err)
			}
			continue
		}
		if err := list.add(name); err != nil {
			return nil, usageError{err}
		}
	}
	return list, nil
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
// with # are skipped. Lines that don't name an item are reported to failed. The context
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
