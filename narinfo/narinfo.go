package narinfo

import (
	"bytes"
	"errors"
	"fmt"
)

// Limits of [Parse] against malicious texts.
const (
	// MaxSize is the maximum length of the text in bytes. A narinfo has 1 to 3 KB; a long one
	// has many references, of some 60 bytes each. References to all packages of Guix need
	// less than this.
	MaxSize = 2 << 20

	// MaxReferences is the maximum number of references: as many as MaxSize has room for at
	// their usual length.
	MaxReferences = 1 << 15

	// MaxValueLen is the maximum length of a field other than References, in bytes. The
	// longest in use is a signature with an RSA key, which stays below 10 KB even for keys of
	// 16,384 bits.
	MaxValueLen = 64 << 10

	// MaxFiles is the maximum number of nars in one narinfo. Guix's client knows six
	// compressions.
	MaxFiles = 32
)

// ErrTooLarge reports a text beyond one of the limits. It may be a valid narinfo.
var ErrTooLarge = errors.New("narinfo is too large")

// SyntaxError says why a text isn't a narinfo.
type SyntaxError struct {
	Line  int    // counted from 1; 0 for the text as a whole
	Field string // "" if it isn't about a field
	Err   error  // what was found and what is allowed
}

func (e *SyntaxError) Error() string {
	s := "narinfo: "
	if e.Line > 0 {
		s += fmt.Sprintf("line %d: ", e.Line)
	}
	if e.Field != "" {
		s += e.Field + ": "
	}
	return s + e.Err.Error()
}

func (e *SyntaxError) Unwrap() error { return e.Err }

// Narinfo is a parsed narinfo. Its text is authoritative; the other fields are derived from
// it, and changing them changes nothing.
type Narinfo struct {
	Text       []byte // verbatim
	StorePath  StorePath
	NarHash    NarHash
	NarSize    int64       // of the nar before compression, in bytes; -1 if not given
	References []StorePath // in the order of the text; an item may refer to itself
	Deriver    string      // as in the text, usually HASH-NAME.drv; "" if not given
	System     string      // as in the text, such as x86_64-linux; "" if not given
	Files      []File      // at least one, in the order of the text

	signature string
	signedLen int  // bytes before the first "Signature:"; -1 for none
	ended     bool // an empty line ended the record
	// signedFirst is whether the field Signature is where the signed bytes end, and StorePath,
	// NarHash and References are above.
	signedFirst bool
	sized       bool // each file has its size
	mixed       bool // some files have one, and others none
}

// signatureMark ends the signed bytes. As in Guix's client (narinfo-sha256 in (guix narinfo)),
// it is a substring anywhere, not only at the beginning of a line.
const signatureMark = "Signature:"

// Signed returns the signed bytes: those before the first "Signature:"; nil if there is none.
// They are a part of Text. The client accepts a signature only if StorePath, NarHash and
// References are among them.
func (n *Narinfo) Signed() []byte {
	if n.signedLen < 0 {
		return nil
	}
	return n.Text[:n.signedLen:n.signedLen]
}

// Signature returns the value of the field Signature, 1;HOST;BASE64; "" for none. It is not
// validated.
func (n *Narinfo) Signature() string { return n.signature }

// CanAppend reports whether the client understands blocks that [AppendFiles] adds. It doesn't
// if an empty line has ended the record, since it stops there; nor if some nars have a size
// and others don't, since it matches sizes to nars by position. If no nar has a size, see
// [Narinfo.Sized], the added ones must have none either.
func (n *Narinfo) CanAppend() bool { return !n.mixed && !n.ended }

// Sized reports whether each nar has its size.
func (n *Narinfo) Sized() bool { return n.sized }

// checkText refuses bytes that aren't a text.
func checkText(text []byte) error {
	switch {
	case len(text) > MaxSize:
		return fmt.Errorf("%w: %d bytes of text, at most %d are allowed", ErrTooLarge, len(text), MaxSize)
	case len(text) == 0:
		return &SyntaxError{Err: errors.New("the text is empty")}
	}
	if i := bytes.IndexByte(text, 0); i >= 0 {
		return &SyntaxError{Line: lineAt(text, i), Err: errors.New("has a NUL byte, must be text")}
	}
	if i := bytes.IndexByte(text, '\r'); i >= 0 {
		return &SyntaxError{Line: lineAt(text, i), Err: errors.New("has a carriage return; lines must end in a newline alone (LF, not CRLF)")}
	}
	if i := firstInvalid(text); i >= 0 {
		return &SyntaxError{Line: lineAt(text, i), Err: fmt.Errorf("has the byte %#02x, must be UTF-8", text[i])}
	}
	return nil
}

// lineAt returns the number of the line with the byte at offset.
func lineAt(text []byte, offset int) int { return 1 + bytes.Count(text[:offset], []byte("\n")) }

// OtherReferences returns the references to other items.
func (n *Narinfo) OtherReferences() []StorePath {
	others := make([]StorePath, 0, len(n.References))
	for _, reference := range n.References {
		if reference != n.StorePath {
			others = append(others, reference)
		}
	}
	return others
}
