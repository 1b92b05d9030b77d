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

// parseItem parses a store path, its base name or its hash, also with .narinfo at the end.
func parseItem(name string) (narinfo.PathHash, error) {
	base := strings.TrimPrefix(strings.TrimSuffix(name, ".narinfo"), narinfo.StoreDir+"/")
	if hash, err := narinfo.ParsePathHash(base); err == nil {
		return hash, nil
	}
	path, err := narinfo.ParseBaseName(base)
	if err != nil {
		return narinfo.PathHash{}, fmt.Errorf("%q is not a store item: want /gnu/store/HASH-NAME, HASH-NAME or HASH", name)
	}
	return path.Hash, nil
}

// readItems returns the items that the command line names, where - stands for a list on
// standard input. Invalid lines of the list are reported to failed.
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

// itemList is a list of distinct items.
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

// longestLine bounds a line of a list, in bytes. Store paths are shorter than 300.
const longestLine = 4096

// read adds the items of a list, one per line. It skips empty lines and comments, and reports
// invalid lines to failed. It returns when the context ends, even while it waits for a terminal.
func (l *itemList) read(ctx context.Context, from io.Reader, failed func(what string, err error)) error {
	done := make(chan error, 1)
	type fault struct {
		number int
		err    error
	}
	// The goroutine may outlive this call, so its results are used only when it is done.
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
	if len(l.hashes) == 0 { // don't copy a long list
		*l = *read
		return nil
	}
	for _, hash := range read.hashes {
		l.addHash(hash)
	}
	return nil
}
