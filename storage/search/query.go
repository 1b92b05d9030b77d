package search

import (
	"bytes"
	"cmp"
	"fmt"
	"slices"
	"strings"

	"nar-herder/narinfo"
)

const (
	// MaxQuery is the longest query in bytes. A name has 211 at most.
	MaxQuery = 256
	// leastStart is how many characters of a hash a query needs. Fewer are those of many items.
	leastStart = 5
)

// Query is a parsed query. The zero value matches nothing.
type Query struct {
	words [][]byte // in lowercase; the first is the longest
	first []byte   // the first word in the query
	all   string   // the words in order, joined by hyphens
	start string   // the start of a hash, if the query may be one
	hash  narinfo.PathHash
	exact bool // the query is hash
}

// ParseQuery parses a query. Its words are substrings of names, in any order and case. PACKAGE@VERSION
// means PACKAGE-VERSION. A single word may also be a store path, a path or URL that contains one,
// HASH.narinfo, a hash, or its first five characters or more. The error says what is wrong with the query.
func ParseQuery(text string) (Query, error) {
	if len(text) > MaxQuery {
		return Query{}, fmt.Errorf("the query is too long: %d bytes, at most %d are allowed", len(text), MaxQuery)
	}
	words := strings.Fields(text)
	if len(words) == 0 {
		return Query{}, nil
	}
	var q Query
	if len(words) == 1 {
		if q.hash, q.exact = parseHash(words[0]); q.exact {
			return q, nil
		}
		if words[0] = strings.TrimPrefix(words[0], narinfo.StoreDir+"/"); words[0] == "" {
			return Query{}, nil
		}
	}
	for i := range words {
		words[i] = strings.ReplaceAll(lower(words[i]), "@", "-")
	}
	q.first, q.all = []byte(words[0]), strings.Join(words, "-")
	if len(words) == 1 && leastStart <= len(q.all) && len(q.all) < narinfo.PathHashLen && isBase32(q.all) {
		q.start = q.all
	}
	slices.SortStableFunc(words, func(a, b string) int { return cmp.Compare(len(b), len(a)) })
	for _, word := range words {
		if !slices.ContainsFunc(q.words, func(longer []byte) bool { return bytes.Contains(longer, []byte(word)) }) {
			q.words = append(q.words, []byte(word))
		}
	}
	return q, nil
}

// IsEmpty reports whether the query has no words.
func (q *Query) IsEmpty() bool { return len(q.words) == 0 && !q.exact }

// Hash returns the hash of a query that names an item.
func (q *Query) Hash() (hash narinfo.PathHash, is bool) { return q.hash, q.exact }

// parseHash returns the hash of the first component of a path or URL that names an item.
func parseHash(word string) (hash narinfo.PathHash, is bool) {
	for part := range strings.SplitSeq(word, "/") {
		part = strings.TrimSuffix(part, ".narinfo")
		if path, err := narinfo.ParseBaseName(part); err == nil {
			return path.Hash, true
		}
		if hash, err := narinfo.ParsePathHash(part); err == nil {
			return hash, true
		}
	}
	return hash, false
}

// isBase32 reports whether a word has only characters of hashes.
func isBase32(word string) bool {
	_, err := narinfo.ParsePathHash(padded(word))
	return err == nil
}

// padded returns a hash that begins with a word of at most 32 characters.
func padded(word string) string {
	return word + strings.Repeat("0", max(narinfo.PathHashLen-len(word), 0))
}

// lower returns the ASCII lowercase of a name. Names have only ASCII characters.
func lower(s string) string {
	for i := range len(s) {
		if 'A' <= s[i] && s[i] <= 'Z' {
			b := []byte(s)
			for ; i < len(b); i++ {
				if 'A' <= b[i] && b[i] <= 'Z' {
					b[i] += 'a' - 'A'
				}
			}
			return string(b)
		}
	}
	return s
}

// The classes of matches, the best first.
const (
	isPackage = iota // the name, or the name without its version, is the query or its first word
	isPrefix         // the name begins with the first word
	isContained
	isHash // the name does not match, but the hash of an item does
)

// matches reports whether a name contains all words, and its class.
func (q *Query) matches(name []byte) (class int, does bool) {
	if len(q.words) == 0 {
		return 0, false
	}
	for _, word := range q.words {
		if !bytes.Contains(name, word) {
			return 0, false
		}
	}
	return q.class(name), true
}

// class returns the class of a name that contains all words.
func (q *Query) class(name []byte) int {
	rest, is := bytes.CutPrefix(name, q.first)
	if !is {
		return isContained
	}
	if len(rest) == 0 || string(name) == q.all {
		return isPackage
	}
	if stem := name[:packageLen(name)]; len(stem) == len(q.first) || string(stem) == q.all {
		return isPackage
	}
	return isPrefix
}

// packageLen returns the length of the package in PACKAGE-VERSION, which ends at the first
// hyphen before a digit.
func packageLen(name []byte) int {
	for i := 1; i < len(name)-1; i++ {
		if name[i] == '-' && isDigit(name[i+1]) {
			return i
		}
	}
	return len(name)
}

func isDigit(c byte) bool { return '0' <= c && c <= '9' }

// compareNames orders names within a class: shorter packages first, then by package, then higher
// versions first, but an output such as -doc after its package.
func compareNames(a, b []byte) int {
	m, n := packageLen(a), packageLen(b)
	if order := cmp.Compare(m, n); order != 0 {
		return order
	}
	if order := bytes.Compare(a[:m], b[:n]); order != 0 {
		return order
	}
	return compareVersions(a[m:], b[n:])
}

// compareVersions compares numbers within the versions as numbers, and the rest as text: 1.10,
// 1.2.1, 1.2, 1.2-doc.
func compareVersions(a, b []byte) int {
	for len(a) > 0 || len(b) > 0 {
		if c := cmp.Compare(rank(a), rank(b)); c != 0 {
			return c
		}
		if !isDigit(a[0]) {
			a, b = a[1:], b[1:]
			continue
		}
		x, y := digits(a), digits(b)
		a, b = a[len(x):], b[len(y):]
		s, t := bytes.TrimLeft(x, "0"), bytes.TrimLeft(y, "0")
		// Leading zeros decide last, so that only equal versions are equal.
		if c := cmp.Or(cmp.Compare(len(t), len(s)), bytes.Compare(t, s), cmp.Compare(len(x), len(y))); c != 0 {
			return c
		}
	}
	return 0
}

// rank orders what follows in a version: a number, a dot, the end, or another character.
func rank(s []byte) int {
	switch {
	case len(s) == 0:
		return 2
	case isDigit(s[0]):
		return 0
	case s[0] == '.':
		return 1
	}
	return 3 + int(s[0])
}

// digits returns the digits at the start.
func digits(s []byte) []byte {
	n := 0
	for n < len(s) && isDigit(s[n]) {
		n++
	}
	return s[:n]
}
