// Package compression reads and writes nars in the compressions that narinfos name.
//
// All codecs work on streams in bounded memory; NewReader and NewWriter document how much.
// The subpackage lzip implements lzip.
package compression

import (
	"fmt"
	"slices"
	"strings"
)

// Names of compressions, as in the Compression field of a narinfo. None is the default.
const (
	None  = "none"
	Gzip  = "gzip"
	Bzip2 = "bzip2"
	Xz    = "xz"
	Lzip  = "lzip"
	Zstd  = "zstd"
)

var (
	readable = []string{None, Gzip, Bzip2, Xz, Lzip, Zstd}
	writable = []string{None, Zstd, Gzip, Lzip}
)

// ErrUnknown is the error for a compression that is unknown, or can't be written.
type ErrUnknown struct {
	Name    string
	Allowed []string
}

func (e ErrUnknown) Error() string {
	return fmt.Sprintf("unknown compression %q, known are %s", e.Name, strings.Join(e.Allowed, ", "))
}

// Known reports whether NewReader can read the compression that a narinfo calls name.
func Known(name string) bool { return slices.Contains(readable, name) }
