package narinfo

import (
	"bytes"
	"errors"
	"fmt"
)

// Limits of what [Parse] takes, against texts that were made to hurt.
const (
	// MaxSize is the most bytes of text. A narinfo has 1 to 3 KB; what makes
	// one long is its references, of some 60 bytes each. An item that refers
	// to every package that Guix has would need less than this.
	MaxSize = 2 << 20

	// MaxReferences is the most references: as many as MaxSize has room for
	// at their usual length.
	MaxReferences = 1 << 15

	// MaxValueLen is the most bytes in the value of a field other than
	// References. The longest in use is a signature with an RSA key, which
	// stays below 10 KB even for keys of 16,384 bits.
	MaxValueLen = 64 << 10

	// MaxFiles is the most nars that one narinfo may name. Guix's client
	// knows six compressions.
	MaxFiles = 32
)

// ErrTooLarge is the error for a text beyond one of the limits, which may well
// be a narinfo. What isn't one gives a [SyntaxError].
var ErrTooLarge = errors.New("narinfo is too large")

// SyntaxError tells why a text isn't a narinfo.
type SyntaxError struct {
	Line  int    // counted from 1; 0 for the text as a whole
	Field string // "" when it isn't about a field
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

// Narinfo is a narinfo that was read. Its text is what counts and what is
// handed on; the other fields were derived from it, and changing them changes
// nothing.
type Narinfo struct {
	Text       []byte // verbatim
	StorePath  StorePath
	NarHash    NarHash
	NarSize    int64       // of the nar before compression, in bytes; -1 when not given
	References []StorePath // in the order of the text; an item may refer to itself
	Deriver    string      // as it stands, usually HASH-NAME.drv; "" when not given
	System     string      // as it stands, such as x86_64-linux; "" when not given
	Files      []File      // at least one, in the order of the text

	signature string
	signedLen int  // bytes before the first "Signature:", -1 when there is none
	ended     bool // an empty line ended the record
	sized     bool // each file has its size
	mixed     bool // some files have one, and others none
}

// signatureMark ends what is signed. The client looks for it as a mere
// substring (narinfo-sha256 in Guix's (guix narinfo)), not at the beginning of
// a line, and so must everybody else.
const signatureMark = "Signature:"

// Signed returns the bytes that the signature is about: those before the first
// "Signature:", wherever that stands; nil when there is none. They are a part of
// Text. The client believes a signature only if StorePath, NarHash and
// References are among them.
func (n *Narinfo) Signed() []byte {
	if n.signedLen < 0 {
		return nil
	}
	return n.Text[:n.signedLen:n.signedLen]
}

// Signature returns the value of the field Signature, 1;HOST;BASE64; "" when
// there is none. It is as it stands, and may be nonsense.
func (n *Narinfo) Signature() string { return n.signature }

// CanAppend tells whether the client will understand blocks that [AppendFiles]
// adds. It won't when an empty line has ended the record, since it reads no
// further; nor when some nars have a size and others don't, since it matches
// sizes to nars by position alone. Where none has a size, as [Narinfo.Sized]
// says, none that is added may have one.
func (n *Narinfo) CanAppend() bool { return !n.mixed && !n.ended }

// Sized tells whether each nar has its size.
func (n *Narinfo) Sized() bool { return n.sized }

// checkText refuses a text that isn't one.
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

// lineAt returns the number of the line that the byte at offset is in.
func lineAt(text []byte, offset int) int { return 1 + bytes.Count(text[:offset], []byte("\n")) }
