package signing

import (
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"
)

// maxSexpDepth bounds the nesting of lists. Signatures have four levels, ACLs five.
const maxSexpDepth = 8

// sexp is an s-expression: a list, which isn't empty, or an atom.
type sexp struct {
	atom   string // in libgcrypt's printed form: token, "string" or #HEX#; "" for a list
	list   []sexp
	source string // a list as it was written
}

// None of these errors quotes the text: it may be a private key.
var (
	errSexpShort = errors.New("the s-expression is cut off")
	errSexpAtom  = errors.New("the s-expression has a string that isn't a token, #hexadecimal# or \"quoted\"")
	errSexpPairs = errors.New("the s-expression has a #hexadecimal# string that isn't pairs of digits")
	errSexpQuote = errors.New("the s-expression has a \"quoted\" string with a character or an escape that can't be in one")
	errSexpNote  = errors.New("the s-expression has a ';', comments aren't allowed")
	errSexpDepth = fmt.Errorf("the s-expression has more than %d levels", maxSexpDepth)
	errSexpEmpty = errors.New("the s-expression has an empty list")
	errSexpStart = errors.New("must be an s-expression, which begins with '('")
	errSexpAfter = errors.New("after the s-expression there is more text")
)

// parseSexp parses an s-expression in libgcrypt's printed form: Rivest's advanced form without
// lengths and base64. As in Guix, the characters up to U+00FF are the bytes of these numbers.
func parseSexp(text string) (sexp, error) {
	// Some old signatures end in NUL. Anywhere else, NUL truncates the text for the client,
	// where it is a C string.
	p := sexpParser{rest: skipSpace(strings.TrimRight(text, "\x00"))}
	if p.rest == "" || p.rest[0] != '(' {
		return sexp{}, errSexpStart
	}
	var open [32]sexp // a signature has 30
	p.open, p.lists = open[:0], make([]sexp, 0, len(open))
	tree, err := p.list(maxSexpDepth)
	if err != nil {
		return sexp{}, err
	}
	if skipSpace(p.rest) != "" {
		return sexp{}, errSexpAfter
	}
	return tree, nil
}

// sexpParser parses with few allocations.
type sexpParser struct {
	rest  string // not parsed yet
	open  []sexp // the items of the lists that haven't ended
	lists []sexp // those of the lists that have
}

// list parses the list at the beginning of rest.
func (p *sexpParser) list(depth int) (sexp, error) {
	if depth == 0 {
		return sexp{}, errSexpDepth
	}
	source, first := p.rest, len(p.open)
	p.rest = p.rest[1:]
	for {
		p.rest = skipSpace(p.rest)
		if p.rest == "" {
			return sexp{}, errSexpShort
		}
		var item sexp
		var err error
		switch p.rest[0] {
		case ')':
			if len(p.open) == first {
				return sexp{}, errSexpEmpty
			}
			start := len(p.lists)
			p.lists = append(p.lists, p.open[first:]...)
			p.open, p.rest = p.open[:first], p.rest[1:]
			return sexp{
				list:   p.lists[start:len(p.lists):len(p.lists)],
				source: source[:len(source)-len(p.rest)],
			}, nil
		case '(':
			item, err = p.list(depth - 1)
		default:
			item.atom, p.rest, err = parseSexpAtom(p.rest)
		}
		if err != nil {
			return sexp{}, err
		}
		p.open = append(p.open, item)
	}
}

// parseSexpAtom parses the atom at the beginning of text.
func parseSexpAtom(text string) (atom, rest string, err error) {
	end := 0
	switch c := text[0]; {
	case c == '#':
		upper := true // and without space
		for end = 1; end < len(text) && isHexOrSpace(text[end]); end++ {
			upper = upper && text[end] <= 'F' && !isSexpSpace(text[end])
		}
		if end == len(text) {
			return "", "", errSexpShort
		}
		if text[end] != '#' {
			return "", "", errSexpAtom
		}
		digits := text[1:end]
		if !upper {
			digits = strings.ToUpper(strings.Join(strings.Fields(digits), ""))
		}
		if len(digits)%2 != 0 {
			return "", "", errSexpPairs
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
			return "", "", errSexpShort
		}
		value, err := unquoteSexp(text[1:end])
		if err != nil {
			return "", "", err
		}
		return printAtom(value), text[end+1:], nil
	case '0' <= c && c <= '9' || !isToken[c]: // a digit begins a length
		if c == ';' {
			return "", "", errSexpNote
		}
		return "", "", errSexpAtom
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
	return '0' <= c && c <= '9' || 'a' <= c && c <= 'f' || 'A' <= c && c <= 'F' || isSexpSpace(c)
}

func isSexpSpace(c byte) bool { return c == ' ' || '\t' <= c && c <= '\r' }

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
		return hex.DecodeString(s.atom[1 : len(s.atom)-1])
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

// listOf returns a list that begins with the token name.
func listOf(name string, items ...sexp) sexp {
	return sexp{list: append([]sexp{{atom: name}}, items...)}
}

// atomOf returns an atom with a value.
func atomOf(value []byte) sexp { return sexp{atom: printAtom(value)} }

// print returns the printed form, byte for byte as libgcrypt does: a nested list is on a line
// of its own, one column deeper, a space is after an atom in front of one, and the end of a
// list with nested lists is on another line.
func (s sexp) print() string {
	b := s.appendTo(make([]byte, 0, 512), 0)
	return string(append(b, '\n'))
}

func (s sexp) appendTo(b []byte, depth int) []byte {
	indent := func() {
		b = append(b, '\n')
		for range depth + 1 {
			b = append(b, ' ')
		}
	}
	b = append(b, '(')
	for i, item := range s.list {
		last := i == len(s.list)-1
		switch {
		case item.atom != "":
			b = append(b, item.atom...)
			if !last {
				b = append(b, ' ')
			}
		default:
			indent()
			b = item.appendTo(b, depth+1)
			if last || s.list[i+1].atom != "" {
				indent()
			}
		}
	}
	return append(b, ')')
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
func (s sexp) number(name string) ([]byte, error) {
	value, err := s.parameter(name)
	return trimZeros(value), err
}

func trimZeros(number []byte) []byte {
	for len(number) > 0 && number[0] == 0 {
		number = number[1:]
	}
	return number
}

// numberOf returns the list (name NUMBER). libgcrypt writes as many bytes as the number needs,
// and one more if the number would look negative.
func numberOf(name string, number []byte) sexp {
	number = trimZeros(number)
	if len(number) > 0 && number[0] >= 0x80 {
		number = append([]byte{0}, number...)
	}
	return listOf(name, atomOf(number))
}
