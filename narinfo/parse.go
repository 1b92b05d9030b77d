package narinfo

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
	"unsafe"
)

// Parse reads a narinfo. It keeps text, and every string of the result is a part of it: the
// caller must not change it.
//
// The text is a record as in Guix's (guix records) and (guix narinfo): lines of the form
// "Field: value", with a letter or '%' first. '+' continues the value of the line before, '#'
// begins a comment. Empty lines at the start are skipped; the first one after a field ends the
// record, and the rest is ignored. Space after the colon is dropped; space at the end of a line
// belongs to the value. Unknown fields are skipped.
//
// Required are StorePath, NarHash, References (which may be empty), at least one URL, and as
// many Compression as URL, since the client matches them by position and skips a nar without
// one. If there are fewer or more FileSize than URL, no size is certain, and all are -1; guix
// publish without a cache writes such narinfos. The other known fields may occur once.
//
// The final newline may be missing. A truncated text is refused unless it has all required
// fields. Parse can't know whether the last line is complete: compare the length of the text.
// Carriage returns, NUL, text that isn't UTF-8, and sizes that aren't plain decimal numbers
// are refused.
//
// The error is a [*SyntaxError], or wraps [ErrTooLarge].
func Parse(text []byte) (*Narinfo, error) {
	n := new(Narinfo)
	if err := ParseInto(n, text); err != nil {
		return nil, err
	}
	return n, nil
}

// ParseInto is [Parse] into a narinfo that isn't used any more, to reuse its memory. After an
// error its content is undefined.
func ParseInto(n *Narinfo, text []byte) error {
	if err := checkText(text); err != nil {
		return err
	}
	*n = Narinfo{
		Text:       text,
		NarSize:    -1,
		References: n.References[:0],
		Files:      n.Files[:0],
		signedLen:  bytes.Index(text, []byte(signatureMark)),
	}
	p := parser{Narinfo: n}
	// The text doesn't change any more, so use its bytes as a string. Copying them would be
	// most of the cost of parsing.
	if err := p.record(unsafe.String(unsafe.SliceData(text), len(text))); err != nil {
		return err
	}
	return p.check()
}

// parser collects a narinfo from its lines.
type parser struct {
	*Narinfo

	field     fieldLine // the field, which the next line may continue
	continued []byte    // its value so far, if it was continued
	seen      uint      // the fields so far that may occur once only, as bits

	// The numbers of the fields that are matched by position.
	urls, compressions, sizes int
}

type fieldLine struct {
	line  int // 0 if there is none yet
	name  string
	value string
}

// The fields that may occur once only.
const (
	seenStorePath = 1 << iota
	seenNarHash
	seenNarSize
	seenReferences
	seenDeriver
	seenSystem
	seenSignature
)

// record splits the text into fields.
func (p *parser) record(text string) error {
	for number := 1; text != ""; number++ {
		offset := len(p.Text) - len(text)
		line, rest, _ := strings.Cut(text, "\n")
		text = rest
		switch {
		case line == "":
			if p.field.line > 0 {
				p.ended = true
				return p.flush()
			}
		case line[0] == '#':
		case line[0] == '+':
			if p.field.line == 0 {
				return &SyntaxError{Line: number, Err: errors.New("'+' must continue a field, there is none before")}
			}
			// Use one buffer, because there may be a million such lines.
			if p.continued == nil {
				p.continued = []byte(p.field.value)
			}
			p.continued = append(p.continued, '\n')
			p.continued = append(p.continued, strings.TrimPrefix(line[1:], " ")...)
		case isFieldStart(line):
			colon := strings.IndexByte(line, ':')
			if colon < 0 {
				return &SyntaxError{Line: number, Err: fmt.Errorf("%s has no colon, must be \"Field: value\"", quote(line))}
			}
			if err := p.flush(); err != nil {
				return err
			}
			p.field = fieldLine{number, line[:colon], trimLeft(line[colon+1:])}
			if p.field.name == "Signature" {
				const needed = seenStorePath | seenNarHash | seenReferences
				p.signedFirst = p.seen&needed == needed && offset == p.signedLen
			}
		default:
			return &SyntaxError{Line: number, Err: fmt.Errorf("%s: a line must begin with the name of a field, '+', or '#'", quote(line))}
		}
	}
	return p.flush()
}

// isFieldStart reports whether a line, which isn't empty, begins a field.
func isFieldStart(line string) bool {
	c := line[0]
	switch {
	case 'A' <= c && c <= 'Z', 'a' <= c && c <= 'z', c == '%':
		return true
	case c < utf8.RuneSelf:
		return false
	}
	r, _ := utf8.DecodeRuneInString(line)
	return unicode.IsUpper(r) || unicode.IsLower(r)
}

// trimLeft drops the space before a value.
func trimLeft(s string) string {
	if len(s) > 1 && s[0] == ' ' && ' ' < s[1] && s[1] < utf8.RuneSelf {
		return s[1:]
	}
	return strings.TrimLeftFunc(s, unicode.IsSpace)
}

// flush sets the value of the complete field, if there is one.
func (p *parser) flush() error {
	f := p.field
	if f.line == 0 {
		return nil
	}
	if p.continued != nil {
		f.value = string(p.continued)
		p.continued = nil
	}
	if len(f.value) > MaxValueLen && f.name != "References" {
		return fmt.Errorf("line %d: %s: %w: value of %d bytes, at most %d are allowed",
			f.line, quote(f.name), ErrTooLarge, len(f.value), MaxValueLen)
	}
	var err error
	switch f.name {
	case "StorePath":
		if err = p.once(seenStorePath); err == nil {
			p.StorePath, err = ParseStorePath(f.value)
		}
	case "NarHash":
		if err = p.once(seenNarHash); err == nil {
			p.NarHash, err = ParseNarHash(f.value)
		}
	case "NarSize":
		if err = p.once(seenNarSize); err == nil {
			p.NarSize, err = parseSize(f.value)
		}
	case "References":
		if err = p.once(seenReferences); err == nil {
			p.References, err = appendReferences(p.References, f.value)
		}
	case "Deriver":
		p.Deriver, err = f.value, p.once(seenDeriver)
	case "System":
		p.System, err = f.value, p.once(seenSystem)
	case "Signature":
		p.signature, err = f.value, p.once(seenSignature)
	case "URL":
		p.urls++
		err = p.setFile(p.urls, func(file *File) (err error) {
			file.URL, err = notEmpty(f.value)
			return err
		})
	case "Compression":
		p.compressions++
		err = p.setFile(p.compressions, func(file *File) (err error) {
			file.Compression, err = notEmpty(f.value)
			return err
		})
	case "FileSize":
		p.sizes++
		err = p.setFile(p.sizes, func(file *File) (err error) {
			file.Size, err = parseSize(f.value)
			return err
		})
	}
	switch {
	case err == nil:
		return nil
	case errors.Is(err, ErrTooLarge):
		return fmt.Errorf("line %d: %s: %w", f.line, f.name, err)
	default:
		return &SyntaxError{f.line, f.name, err}
	}
}

func (p *parser) once(bit uint) error {
	if p.seen&bit != 0 {
		return errors.New("is given twice, only one is allowed")
	}
	p.seen |= bit
	return nil
}

// setFile calls set with the file of a position, counted from 1.
func (p *parser) setFile(position int, set func(*File) error) error {
	if position > MaxFiles {
		return fmt.Errorf("%w: more than %d nars", ErrTooLarge, MaxFiles)
	}
	if p.Files == nil {
		p.Files = make([]File, 0, 3) // gzip, lzip and zstd
	}
	if position > len(p.Files) {
		p.Files = append(p.Files, File{Size: -1})
	}
	return set(&p.Files[position-1])
}

// check validates the record as a whole.
func (p *parser) check() error {
	missing := ""
	switch {
	case p.seen&seenStorePath == 0:
		missing = "StorePath"
	case p.seen&seenNarHash == 0:
		missing = "NarHash"
	case p.seen&seenReferences == 0:
		missing = "References"
	case p.urls == 0:
		missing = "URL"
	}
	if missing != "" {
		return &SyntaxError{Field: missing, Err: errors.New("is missing; StorePath, NarHash, References and URL are needed")}
	}
	if p.compressions != p.urls {
		return &SyntaxError{Field: "Compression", Err: fmt.Errorf("there are %d for %d URL, must be one for each", p.compressions, p.urls)}
	}
	p.Files = p.Files[:p.urls]
	p.sized, p.mixed = p.sizes == p.urls, p.sizes != p.urls && p.sizes != 0
	if !p.sized {
		for i := range p.Files {
			p.Files[i].Size = -1
		}
	}
	return nil
}

func notEmpty(s string) (string, error) {
	if s == "" {
		return "", errors.New("is empty")
	}
	return s, nil
}

// parseSize parses a number of bytes: decimal digits only. The client accepts any number of
// Scheme, but no program writes those.
func parseSize(s string) (int64, error) {
	var n int64
	for i := range len(s) {
		d := int64(s[i]) - '0'
		if d < 0 || d > 9 || n > (math.MaxInt64-d)/10 {
			return -1, fmt.Errorf("%s: must be a decimal number of bytes, at most %d", quote(s), int64(math.MaxInt64))
		}
		n = n*10 + d
	}
	if s == "" {
		return -1, errors.New("is empty, must be a decimal number of bytes")
	}
	return n, nil
}

// appendReferences parses names of store items with space between them.
func appendReferences(references []StorePath, s string) ([]StorePath, error) {
	if strings.IndexByte(s, '\n') >= 0 || strings.IndexByte(s, '\t') >= 0 {
		s = otherSpace.Replace(s)
	}
	if s == "" {
		return references, nil
	}
	// One more than spaces, which separate them.
	references = slices.Grow(references, min(strings.Count(s, " ")+1, MaxReferences))
	for s != "" {
		name := s
		if end := strings.IndexByte(s, ' '); end >= 0 {
			name, s = s[:end], s[end+1:]
		} else {
			s = ""
		}
		if name == "" {
			continue
		}
		if len(references) == MaxReferences {
			return nil, fmt.Errorf("%w: more than %d references", ErrTooLarge, MaxReferences)
		}
		path, err := ParseBaseName(name)
		if err != nil {
			return nil, err
		}
		references = append(references, path)
	}
	return references, nil
}

// otherSpace replaces other space between references: tabs, and the newlines of a continued
// field.
var otherSpace = strings.NewReplacer("\n", " ", "\t", " ")

// firstInvalid returns the offset of the first byte that isn't UTF-8, or -1.
func firstInvalid(text []byte) int {
	if utf8.Valid(text) {
		return -1
	}
	for i := 0; i < len(text); {
		r, size := utf8.DecodeRune(text[i:])
		if r == utf8.RuneError && size == 1 {
			return i
		}
		i += size
	}
	return -1
}
