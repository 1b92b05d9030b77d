package fetch

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"strings"

	"nar-herder/narinfo"
)

// List is a list of distinct store items. The zero value is empty.
type List struct {
	Paths []narinfo.StorePath // a name may be empty
	// Derivations counts the derivations, which no substitute server has.
	Derivations int
	// Invalid are paths that look like store items.
	Invalid []string
	// HasText says that a text was not empty.
	HasText bool

	known map[narinfo.PathHash]struct{}
}

// longestWord bounds a word of a list, in bytes. Store paths are shorter than 300.
const longestWord = 4 << 10

// Read adds the store items that a text mentions, each once: the output of guix build -n or
// guix weather, a file of paths, or anything else.
func (l *List) Read(from io.Reader) error {
	scanner := bufio.NewScanner(from)
	scanner.Buffer(nil, longestWord)
	scanner.Split(scanWord)
	for scanner.Scan() {
		l.HasText = true
		// Words can have = before a path.
		for word := scanner.Text(); ; {
			_, rest, found := strings.Cut(word, narinfo.StoreDir+"/")
			if !found {
				break
			}
			base, rest, _ := strings.Cut(rest, "/")
			// Of "building /gnu/store/HASH-NAME...", the dots are not part of the name.
			if base = strings.TrimRight(base, "."); base != "" {
				l.addPath(base)
			}
			word = "/" + rest
		}
	}
	if errors.Is(scanner.Err(), bufio.ErrTooLong) {
		return fmt.Errorf("it has a word of over %d bytes, so it is not a list of store paths", longestWord)
	}
	return scanner.Err()
}

func (l *List) addPath(base string) {
	if path, err := narinfo.ParseBaseName(base); err != nil {
		l.Invalid = append(l.Invalid, narinfo.StoreDir+"/"+base)
	} else {
		l.Add(path)
	}
}

// Add adds an item. It counts a derivation.
func (l *List) Add(path narinfo.StorePath) {
	if strings.HasSuffix(path.Name, ".drv") {
		l.Derivations++
		return
	}
	if l.known == nil {
		l.known = make(map[narinfo.PathHash]struct{})
	}
	if _, known := l.known[path.Hash]; !known {
		l.known[path.Hash] = struct{}{}
		l.Paths = append(l.Paths, path)
	}
}

// scanWord is a [bufio.SplitFunc]. Words have characters of store paths only.
func scanWord(data []byte, atEOF bool) (advance int, word []byte, err error) {
	begin := 0
	for begin < len(data) && !isPathByte(data[begin]) {
		begin++
	}
	for end := begin; end < len(data); end++ {
		if !isPathByte(data[end]) {
			return end + 1, data[begin:end], nil
		}
	}
	if atEOF && begin < len(data) {
		return len(data), data[begin:], nil
	}
	return begin, nil, nil
}

func isPathByte(b byte) bool {
	return 'a' <= b && b <= 'z' || 'A' <= b && b <= 'Z' || '0' <= b && b <= '9' || strings.IndexByte("+-._?=/", b) >= 0
}
