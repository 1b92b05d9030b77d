package redact

import (
	"fmt"
	"io"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Visible escapes unprintable characters of a text from another machine, user or file, such
// as control characters, which can move a terminal's cursor or begin another line.
func Visible(text string) string {
	hidden := func(r rune) bool { return r == utf8.RuneError || !strconv.IsPrint(r) }
	if strings.IndexFunc(text, hidden) < 0 {
		return text
	}
	var b strings.Builder
	for len(text) > 0 {
		r, size := utf8.DecodeRuneInString(text)
		switch {
		case r == utf8.RuneError && size == 1:
			fmt.Fprintf(&b, `\x%02x`, text[0])
		case strconv.IsPrint(r):
			b.WriteRune(r)
		default:
			quoted := strconv.QuoteRune(r)
			b.WriteString(quoted[1 : len(quoted)-1])
		}
		text = text[size:]
	}
	return b.String()
}

// JSON escapes all control characters of the JSON that is written to it: encoding/json
// doesn't escape DEL and those beyond ASCII. Each Write must consist of whole characters.
type JSON struct{ W io.Writer }

// Write implements [io.Writer].
func (j JSON) Write(p []byte) (int, error) {
	text := string(p)
	hidden := func(r rune) bool { return r != '\n' && r != utf8.RuneError && !strconv.IsPrint(r) }
	if strings.IndexFunc(text, hidden) < 0 {
		return j.W.Write(p)
	}
	var b strings.Builder
	for _, r := range text {
		switch {
		case !hidden(r):
			b.WriteRune(r)
		case r < 0x10000:
			fmt.Fprintf(&b, `\u%04x`, r)
		default:
			r -= 0x10000
			fmt.Fprintf(&b, `\u%04x\u%04x`, 0xd800+r>>10, 0xdc00+r&0x3ff)
		}
	}
	if _, err := io.WriteString(j.W, b.String()); err != nil {
		return 0, err
	}
	return len(p), nil
}
