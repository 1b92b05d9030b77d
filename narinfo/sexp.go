package narinfo

import (
	"errors"
	"fmt"
	"strings"
)

// maxSexpDepth is how deep lists may be nested. Signatures and keys have four
// levels.
const maxSexpDepth = 8

// sexp is an s-expression: a list, which isn't empty, or an atom.
type sexp struct {
	atom string // as it was printed: token, "string" or #HEX#
	list []sexp
}

var (
	errSexpShort = errors.New("the s-expression is cut off")
	errSexpAtom  = errors.New("the s-expression has a string that isn't a token, #hexadecimal# or \"quoted\"")
)

// parseSexp reads an s-expression in the form that libgcrypt prints, which is
// Rivest's advanced form without lengths, base64 and escapes.
func parseSexp(text string) (sexp, error) {
	tree, rest, err := parseSexpList(skipSpace(text), maxSexpDepth)
	if err == nil && skipSpace(rest) != "" {
		err = fmt.Errorf("after the s-expression there is %s", quote(rest))
	}
	return tree, err
}

// parseSexpList reads the list that text begins with, and returns what follows.
func parseSexpList(text string, depth int) (tree sexp, rest string, err error) {
	text, ok := strings.CutPrefix(text, "(")
	if !ok {
		return sexp{}, "", fmt.Errorf("must be an s-expression, is %s", quote(text))
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
	switch delimiter := text[0]; delimiter {
	case '#', '"':
		allowed := isHexOrSpace
		if delimiter == '"' {
			allowed = isPlain
		}
		end = 1
		for end < len(text) && allowed(text[end]) {
			end++
		}
		if end == len(text) {
			return "", "", errSexpShort
		}
		if text[end] != delimiter {
			return "", "", errSexpAtom
		}
		end++
		atom = text[:end]
		if delimiter == '#' {
			atom = strings.ToUpper(strings.Join(strings.Fields(atom), ""))
		}
		return atom, text[end:], nil
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

// isPlain tells what a quoted string may have in it: nothing that would be
// escaped.
func isPlain(c byte) bool { return ' ' <= c && c <= '~' && c != '"' && c != '\\' }

// isSexpSpace includes NUL, which ended the text in some old signatures.
func isSexpSpace(c byte) bool { return c == ' ' || c == '\n' || c == '\t' || c == '\r' || c == 0 }

func skipSpace(s string) string {
	for s != "" && isSexpSpace(s[0]) {
		s = s[1:]
	}
	return s
}

// head returns the first atom of a list, "" if there is none.
func (s sexp) head() string {
	if len(s.list) == 0 {
		return ""
	}
	return s.list[0].atom
}

// isPublicKey tells whether s is (public-key (ALGORITHM (PARAMETER VALUE…)…)).
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

// print returns the printed form: a list within a list on a line of its own,
// one column deeper, and the end of a list that has such on a further one.
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
