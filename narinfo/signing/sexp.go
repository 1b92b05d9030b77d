package signing

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"
)

// maxSexpDepth bounds the nesting of lists. Signatures and keys have four levels.
const maxSexpDepth = 8

// sexp is an s-expression: a list, which isn't empty, or an atom.
type sexp struct {
	atom string // as it was printed: token, "string" or #HEX#
	list []sexp
}

var (
	errSexpShort = errors.New("the s-expression is cut off")
	errSexpAtom  = errors.New("the s-expression has a string that isn't a token, #hexadecimal# or \"quoted\"")
	errSexpQuote = errors.New("the s-expression has a \"quoted\" string with a character or an escape that can't be in one")
)

// parseSexp parses an s-expression in libgcrypt's printed form: Rivest's advanced form without
// lengths and base64. As in Guix, the characters up to U+00FF are the bytes of these numbers.
func parseSexp(text string) (sexp, error) {
	// Some old signatures end in NUL. Anywhere else, NUL truncates the text for the client,
	// where it is a C string.
	text = strings.TrimRight(text, "\x00")
	tree, rest, err := parseSexpList(skipSpace(text), maxSexpDepth)
	if err == nil && skipSpace(rest) != "" {
		err = fmt.Errorf("after the s-expression there is %.80q", rest)
	}
	return tree, err
}

// parseSexpList parses the list at the beginning of text, and returns the rest.
func parseSexpList(text string, depth int) (tree sexp, rest string, err error) {
	text, ok := strings.CutPrefix(text, "(")
	if !ok {
		return sexp{}, "", fmt.Errorf("must be an s-expression, is %.80q", text)
	}
	if depth == 0 {
		return sexp{}, "", fmt.Errorf("the s-expression has more than %d levels", maxSexpDepth)
	}
	for {
		text = skipSpace(text)
		if text == "" {
			return sexp{}, "", errSexpShort
		}
		var item sexp
		switch text[0] {
		case ')':
			if len(tree.list) == 0 {
				return sexp{}, "", errors.New("the s-expression has an empty list")
			}
			return tree, text[1:], nil
		case '(':
			item, text, err = parseSexpList(text, depth-1)
		default:
			item.atom, text, err = parseSexpAtom(text)
		}
		if err != nil {
			return sexp{}, "", err
		}
		tree.list = append(tree.list, item)
	}
}

func parseSexpAtom(text string) (atom, rest string, err error) {
	end := 0
	switch text[0] {
	case '#':
		end = 1
		for end < len(text) && isHexOrSpace(text[end]) {
			end++
		}
		if end == len(text) {
			return "", "", errSexpShort
		}
		if text[end] != '#' {
			return "", "", errSexpAtom
		}
		end++
		return strings.ToUpper(strings.Join(strings.Fields(text[:end]), "")), text[end:], nil
	case '"':
		end = 1
		for end < len(text) && text[end] != '"' {
			if text[end] == '\\' {
				end++ // an escaped character doesn't end the string
			}
			end++
		}
		if end >= len(text) {
			return "", "", errSexpShort
		}
		end++
		if _, err := unquoteSexp(text[1 : end-1]); err != nil {
			return "", "", err
		}
		return text[:end], text[end:], nil
	default:
		for end < len(text) && isTokenByte(text[end]) {
			end++
		}
		if end == 0 {
			return "", "", errSexpAtom
		}
		return text[:end], text[end:], nil
	}
}

func isTokenByte(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' ||
		strings.IndexByte("-./_:*+=", c) >= 0
}

func isHexOrSpace(c byte) bool {
	return '0' <= c && c <= '9' || 'a' <= c && c <= 'f' || 'A' <= c && c <= 'F' || isSexpSpace(c)
}

func isSexpSpace(c byte) bool { return c == ' ' || c == '\n' || c == '\t' || c == '\r' }

func skipSpace(s string) string {
	for s != "" && isSexpSpace(s[0]) {
		s = s[1:]
	}
	return s
}

// head returns the first atom of a list; "" for none.
func (s sexp) head() string {
	if len(s.list) == 0 {
		return ""
	}
	return s.list[0].atom
}

// value returns the bytes of an atom. libgcrypt prints numbers and hashes in hexadecimal,
// except one in several thousand that happens to have only printable characters and some
// others: it prints that as a quoted string.
func (s sexp) value() ([]byte, error) {
	switch {
	case s.atom == "":
		return nil, errors.New("it is a list, must be a string")
	case s.atom[0] == '#':
		value, err := hex.DecodeString(s.atom[1 : len(s.atom)-1])
		if err != nil {
			return nil, fmt.Errorf("%.80q: must be pairs of hexadecimal digits", s.atom)
		}
		return value, nil
	case s.atom[0] == '"':
		return unquoteSexp(s.atom[1 : len(s.atom)-1])
	default:
		return []byte(s.atom), nil
	}
}

// unquoteSexp decodes the text between quotes.
func unquoteSexp(text string) ([]byte, error) {
	value := make([]byte, 0, len(text))
	for text != "" {
		r, size := utf8.DecodeRuneInString(text)
		// RuneError is above U+00FF as well.
		if r < ' ' || r == '"' || r > 0xFF {
			return nil, errSexpQuote
		}
		text = text[size:]
		if r != '\\' {
			value = append(value, byte(r))
			continue
		}
		c, size := unescapeSexp(text)
		if size == 0 {
			return nil, errSexpQuote
		}
		value = append(value, c)
		text = text[size:]
	}
	return value, nil
}

// unescapeSexp decodes the escape, without its backslash, at the beginning of text. It returns
// its length; 0 for none.
func unescapeSexp(text string) (c byte, size int) {
	if text == "" {
		return 0, 0
	}
	const letters, meanings = `btvnfr"'\`, "\b\t\v\n\f\r\"'\\"
	if i := strings.IndexByte(letters, text[0]); i >= 0 {
		return meanings[i], 1
	}
	if text[0] == 'x' && len(text) >= 3 {
		var b [1]byte
		if _, err := hex.Decode(b[:], []byte(text[1:3])); err == nil {
			return b[0], 3
		}
	}
	return 0, 0
}

// isPublicKey reports whether s is (public-key (ALGORITHM (PARAMETER VALUE…)…)).
func (s sexp) isPublicKey() bool {
	if len(s.list) != 2 || len(s.list[1].list) < 2 || s.list[1].head() == "" {
		return false
	}
	for _, parameter := range s.list[1].list[1:] {
		if len(parameter.list) < 2 {
			return false
		}
		for _, value := range parameter.list {
			if value.atom == "" {
				return false
			}
		}
	}
	return true
}

// print returns the printed form: a nested list is on a line of its own, one column deeper,
// and the end of a list with nested lists is on another line.
func (s sexp) print() string {
	var b strings.Builder
	s.printTo(&b, 0)
	b.WriteByte('\n')
	return b.String()
}

func (s sexp) printTo(b *strings.Builder, depth int) {
	indent := func() {
		b.WriteByte('\n')
		for range depth + 1 {
			b.WriteByte(' ')
		}
	}
	b.WriteByte('(')
	nested := false
	for i, item := range s.list {
		switch {
		case item.atom == "":
			nested = true
			indent()
			item.printTo(b, depth+1)
		case i > 0:
			b.WriteByte(' ')
			fallthrough
		default:
			b.WriteString(item.atom)
		}
	}
	if nested {
		indent()
	}
	b.WriteByte(')')
}

// child returns the list within s that begins with name. It refuses several, because another
// program could choose another.
func (s sexp) child(name string) (sexp, error) {
	var found sexp
	for _, item := range s.list {
		if item.head() != name {
			continue
		}
		if found.list != nil {
			return sexp{}, fmt.Errorf("%.80q has more than one %s", s.head(), name)
		}
		found = item
	}
	if found.list == nil {
		return sexp{}, fmt.Errorf("%.80q has no %s", s.head(), name)
	}
	return found, nil
}

// only returns an error if the list s has lists that begin with other names: they may change
// how to verify, or be damage.
func (s sexp) only(names ...string) error {
	for _, item := range s.list[1:] {
		if !slices.Contains(names, item.head()) {
			return fmt.Errorf("%w: %.80q has %.80q in it, only %s are known",
				ErrUnknownAlgorithm, s.head(), item.head()+item.atom, strings.Join(names, ", "))
		}
	}
	return nil
}

// parameter returns the value of (name VALUE) within s.
func (s sexp) parameter(name string) ([]byte, error) {
	child, err := s.child(name)
	if err != nil {
		return nil, err
	}
	if len(child.list) != 2 {
		return nil, fmt.Errorf("%.80q: %s must have one value, has %d", s.head(), name, len(child.list)-1)
	}
	value, err := child.list[1].value()
	if err != nil {
		return nil, fmt.Errorf("%.80q: %s: %w", s.head(), name, err)
	}
	return value, nil
}

// number returns a parameter that is a number, in big-endian order without leading zeros.
// libgcrypt writes as many bytes as it needs, and one more if the number would look negative.
func (s sexp) number(name string) ([]byte, error) {
	value, err := s.parameter(name)
	return bytes.TrimLeft(value, "\x00"), err
}
