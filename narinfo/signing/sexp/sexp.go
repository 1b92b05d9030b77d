// Package sexp reads and writes s-expressions as libgcrypt prints them.
package sexp

import (
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"
)

// maxDepth bounds the nesting of lists. Signatures have four levels, ACLs five.
const maxDepth = 8

// Expr is an s-expression: a list, which isn't empty, or an atom.
type Expr struct {
	Atom   string // in libgcrypt's printed form: token, "string" or #HEX#; "" for a list
	List   []Expr
	Source string // a list as it was written
}

// None of these errors quotes the text: it may be a private key.
var (
	errShort = errors.New("the s-expression is cut off")
	errAtom  = errors.New("the s-expression has a string that isn't a token, #hexadecimal# or \"quoted\"")
	errPairs = errors.New("the s-expression has a #hexadecimal# string that isn't pairs of digits")
	errQuote = errors.New("the s-expression has a \"quoted\" string with a character or an escape that can't be in one")
	errNote  = errors.New("the s-expression has a ';', comments aren't allowed")
	errDepth = fmt.Errorf("the s-expression has more than %d levels", maxDepth)
	errEmpty = errors.New("the s-expression has an empty list")
	errStart = errors.New("must be an s-expression, which begins with '('")
	errAfter = errors.New("after the s-expression there is more text")
)

// Parse parses an s-expression in libgcrypt's printed form: Rivest's advanced form without
// lengths and base64. As in Guix, the characters up to U+00FF are the bytes of these numbers.
func Parse(text string) (Expr, error) {
	// Some old signatures end in NUL. Anywhere else, NUL truncates the text for the client,
	// where it is a C string.
	p := parser{rest: skipSpace(strings.TrimRight(text, "\x00"))}
	if p.rest == "" || p.rest[0] != '(' {
		return Expr{}, errStart
	}
	var open [32]Expr // a signature has 30
	p.open, p.lists = open[:0], make([]Expr, 0, len(open))
	tree, err := p.list(maxDepth)
	if err != nil {
		return Expr{}, err
	}
	if skipSpace(p.rest) != "" {
		return Expr{}, errAfter
	}
	return tree, nil
}

// parser parses with few allocations.
type parser struct {
	rest  string // not parsed yet
	open  []Expr // the items of the lists that haven't ended
	lists []Expr // those of the lists that have
}

// list parses the list at the beginning of rest.
func (p *parser) list(depth int) (Expr, error) {
	if depth == 0 {
		return Expr{}, errDepth
	}
	source, first := p.rest, len(p.open)
	p.rest = p.rest[1:]
	for {
		p.rest = skipSpace(p.rest)
		if p.rest == "" {
			return Expr{}, errShort
		}
		var item Expr
		var err error
		switch p.rest[0] {
		case ')':
			if len(p.open) == first {
				return Expr{}, errEmpty
			}
			start := len(p.lists)
			p.lists = append(p.lists, p.open[first:]...)
			p.open, p.rest = p.open[:first], p.rest[1:]
			return Expr{
				List:   p.lists[start:len(p.lists):len(p.lists)],
				Source: source[:len(source)-len(p.rest)],
			}, nil
		case '(':
			item, err = p.list(depth - 1)
		default:
			item.Atom, p.rest, err = parseAtom(p.rest)
		}
		if err != nil {
			return Expr{}, err
		}
		p.open = append(p.open, item)
	}
}

// parseAtom parses the atom at the beginning of text.
func parseAtom(text string) (atom, rest string, err error) {
	end := 0
	switch c := text[0]; {
	case c == '#':
		upper := true // and without space
		for end = 1; end < len(text) && isHexOrSpace(text[end]); end++ {
			upper = upper && text[end] <= 'F' && !isSpace(text[end])
		}
		if end == len(text) {
			return "", "", errShort
		}
		if text[end] != '#' {
			return "", "", errAtom
		}
		digits := text[1:end]
		if !upper {
			digits = strings.ToUpper(strings.Join(strings.Fields(digits), ""))
		}
		if len(digits)%2 != 0 {
			return "", "", errPairs
		}
		end++
		switch {
		case !isBinary(digits):
			value, err := hex.DecodeString(digits)
			return printAtom(value), text[end:], err
		case upper:
			return text[:end], text[end:], nil
		default:
			return "#" + digits + "#", text[end:], nil
		}
	case c == '"':
		for end = 1; end < len(text) && text[end] != '"'; end++ {
			if text[end] == '\\' {
				end++ // an escaped character doesn't end the string
			}
		}
		if end >= len(text) {
			return "", "", errShort
		}
		value, err := unquote(text[1:end])
		if err != nil {
			return "", "", err
		}
		return printAtom(value), text[end+1:], nil
	case '0' <= c && c <= '9' || !isToken[c]: // a digit begins a length
		if c == ';' {
			return "", "", errNote
		}
		return "", "", errAtom
	default:
		for end < len(text) && isToken[text[end]] {
			end++
		}
		return text[:end], text[end:], nil
	}
}

// isBinary reports whether libgcrypt prints the value of hexadecimal digits, in upper case,
// as these. It is a short cut for almost all values.
func isBinary(digits string) bool {
	if digits == "" {
		return false
	}
	if digits[0] >= '8' {
		return true
	}
	for i := 0; i < len(digits); i += 2 {
		switch high, low := digits[i], digits[i+1]; {
		case high == '0' && '8' <= low && low <= 'D': // \b to \r
		case high < '2', high == '8', high == '9', high == '7' && low == 'F', high == 'A' && low == '0':
			return true
		}
	}
	return false
}

// printAtom returns libgcrypt's printed form of an atom.
func printAtom(value []byte) string {
	digits := strings.ToUpper(hex.EncodeToString(value))
	if isBinary(digits) {
		return "#" + digits + "#"
	}
	token := len(value) > 0 && (value[0] < '0' || value[0] > '9')
	for _, c := range value {
		token = token && isToken[c]
	}
	if token {
		return string(value)
	}
	quoted := make([]rune, 0, len(value)+2)
	quoted = append(quoted, '"')
	for _, c := range value {
		if i := strings.IndexByte(escaped, c); i >= 0 {
			quoted = append(quoted, '\\', rune(escapes[i]))
		} else {
			quoted = append(quoted, rune(c))
		}
	}
	return string(append(quoted, '"'))
}

// escaped are the bytes that libgcrypt prints as a backslash and one of escapes.
const (
	escaped = "\b\t\v\n\f\r\"'\\"
	escapes = `btvnfr"'\`
)

// isToken has the bytes of tokens.
var isToken = func() (table [256]bool) {
	for c := range table {
		table[c] = 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9'
	}
	for _, c := range "-./_:*+=" {
		table[c] = true
	}
	return table
}()

func isHexOrSpace(c byte) bool {
	return '0' <= c && c <= '9' || 'a' <= c && c <= 'f' || 'A' <= c && c <= 'F' || isSpace(c)
}

func isSpace(c byte) bool { return c == ' ' || '\t' <= c && c <= '\r' }

func skipSpace(s string) string {
	for s != "" && isSpace(s[0]) {
		s = s[1:]
	}
	return s
}

// Head returns the first atom of a list; "" for none.
func (s Expr) Head() string {
	if len(s.List) == 0 {
		return ""
	}
	return s.List[0].Atom
}

// Value returns the bytes of an atom. libgcrypt prints numbers and hashes in hexadecimal,
// except one in several thousand that happens to have only printable characters and some
// others: it prints that as a quoted string.
func (s Expr) Value() ([]byte, error) {
	switch {
	case s.Atom == "":
		return nil, errors.New("it is a list, must be a string")
	case s.Atom[0] == '#':
		return hex.DecodeString(s.Atom[1 : len(s.Atom)-1])
	case s.Atom[0] == '"':
		return unquote(s.Atom[1 : len(s.Atom)-1])
	default:
		return []byte(s.Atom), nil
	}
}

// unquote decodes the text between quotes.
func unquote(text string) ([]byte, error) {
	value := make([]byte, 0, len(text))
	for text != "" {
		r, size := utf8.DecodeRuneInString(text)
		// RuneError is above U+00FF as well.
		if r < ' ' || r == '"' || r > 0xFF {
			return nil, errQuote
		}
		text = text[size:]
		if r != '\\' {
			value = append(value, byte(r))
			continue
		}
		c, size := unescape(text)
		if size == 0 {
			return nil, errQuote
		}
		value = append(value, c)
		text = text[size:]
	}
	return value, nil
}

// unescape decodes the escape, without its backslash, at the beginning of text. It returns
// its length; 0 for none.
func unescape(text string) (c byte, size int) {
	if text == "" {
		return 0, 0
	}
	if i := strings.IndexByte(escapes, text[0]); i >= 0 {
		return escaped[i], 1
	}
	if text[0] == 'x' && len(text) >= 3 {
		var b [1]byte
		if _, err := hex.Decode(b[:], []byte(text[1:3])); err == nil {
			return b[0], 3
		}
	}
	return 0, 0
}

// NewList returns a list that begins with the token name.
func NewList(name string, items ...Expr) Expr {
	return Expr{List: append([]Expr{{Atom: name}}, items...)}
}

// NewAtom returns an atom with a value.
func NewAtom(value []byte) Expr { return Expr{Atom: printAtom(value)} }

// Print returns the printed form, byte for byte as libgcrypt does: a nested list is on a line
// of its own, one column deeper, a space is after an atom in front of one, and the end of a
// list with nested lists is on another line.
func (s Expr) Print() string {
	b := s.appendTo(make([]byte, 0, 512), 0)
	return string(append(b, '\n'))
}

func (s Expr) appendTo(b []byte, depth int) []byte {
	indent := func() {
		b = append(b, '\n')
		for range depth + 1 {
			b = append(b, ' ')
		}
	}
	b = append(b, '(')
	for i, item := range s.List {
		last := i == len(s.List)-1
		switch {
		case item.Atom != "":
			b = append(b, item.Atom...)
			if !last {
				b = append(b, ' ')
			}
		default:
			indent()
			b = item.appendTo(b, depth+1)
			if last || s.List[i+1].Atom != "" {
				indent()
			}
		}
	}
	return append(b, ')')
}

// Child returns the list within s that begins with name. It refuses several, because another
// program could choose another.
func (s Expr) Child(name string) (Expr, error) {
	var found Expr
	for _, item := range s.List {
		if item.Head() != name {
			continue
		}
		if found.List != nil {
			return Expr{}, fmt.Errorf("%.80q has more than one %s", s.Head(), name)
		}
		found = item
	}
	if found.List == nil {
		return Expr{}, fmt.Errorf("%.80q has no %s", s.Head(), name)
	}
	return found, nil
}

// Parameter returns the value of (name VALUE) within s.
func (s Expr) Parameter(name string) ([]byte, error) {
	child, err := s.Child(name)
	if err != nil {
		return nil, err
	}
	if len(child.List) != 2 {
		return nil, fmt.Errorf("%.80q: %s must have one value, has %d", s.Head(), name, len(child.List)-1)
	}
	value, err := child.List[1].Value()
	if err != nil {
		return nil, fmt.Errorf("%.80q: %s: %w", s.Head(), name, err)
	}
	return value, nil
}

// Number returns a parameter that is a number, in big-endian order without leading zeros.
func (s Expr) Number(name string) ([]byte, error) {
	value, err := s.Parameter(name)
	return TrimZeros(value), err
}

func TrimZeros(number []byte) []byte {
	for len(number) > 0 && number[0] == 0 {
		number = number[1:]
	}
	return number
}

// NewNumber returns the list (name NUMBER). libgcrypt writes as many bytes as the number needs,
// and one more if the number would look negative.
func NewNumber(name string, number []byte) Expr {
	number = TrimZeros(number)
	if len(number) > 0 && number[0] >= 0x80 {
		number = append([]byte{0}, number...)
	}
	return NewList(name, NewAtom(number))
}
