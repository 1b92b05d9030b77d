// Package ahead finds the narinfos in requests that a client has sent ahead of their turn.
package ahead

import (
	"bytes"

	"nar-herder/narinfo"
)

var (
	begin = []byte("GET /")
	end   = []byte(".narinfo HTTP/1.")
)

// Narinfos returns the items in requests for narinfos. It skips lines that it doesn't understand:
// their requests are answered in their turn.
func Narinfos(lines []byte) (hashes []narinfo.PathHash) {
	for len(lines) > 0 {
		var line []byte
		line, lines, _ = bytes.Cut(lines, []byte{'\n'})
		if len(line) < len(begin)+narinfo.PathHashLen || !bytes.HasPrefix(line, begin) {
			continue
		}
		name := line[len(begin):]
		if !bytes.HasPrefix(name[narinfo.PathHashLen:], end) {
			continue
		}
		if hash, err := narinfo.ParsePathHash(name[:narinfo.PathHashLen]); err == nil {
			hashes = append(hashes, hash)
		}
	}
	return hashes
}
