package narinfo

import (
	"bytes"
	"slices"
)

// WithoutFiles returns the text without the blocks of some files: bit N of files stands for
// the Nth. Signed bytes never change, so a file with a field among them keeps its block. The
// result is the text itself if no block is removed: also if all would be, or if the sizes of
// files are not certain, see [Narinfo.CanAppend].
func (n *Narinfo) WithoutFiles(files uint64) []byte {
	if files == 0 || n.mixed {
		return n.Text
	}
	lines := n.fileLines()
	var kept uint64 // files with a signed field
	for _, line := range lines {
		if line.start < n.signedLen {
			kept |= 1 << line.file
		}
	}
	all := uint64(1)<<len(n.Files) - 1
	if files &= all &^ kept; files == 0 || files == all {
		return n.Text
	}
	text := make([]byte, 0, len(n.Text))
	end := 0
	for _, line := range lines {
		if files&(1<<line.file) != 0 {
			text = append(text, n.Text[end:line.start]...)
			end = line.end
		}
	}
	return append(text, n.Text[end:]...)
}

// fileLine is a line of a field that describes the file with that number.
type fileLine struct{ start, end, file int }

// fileLines returns the lines of the fields that are matched to files by position.
func (n *Narinfo) fileLines() []fileLine {
	lines := make([]fileLine, 0, 3*len(n.Files))
	hashes := make([]fileLine, 0, len(n.Files))
	var counts [4]int // of fields so far
	list, file, hasField := (*[]fileLine)(nil), 0, false
	offset := 0
	for line := range bytes.Lines(n.Text) {
		start := offset
		offset += len(line)
		if line[0] == '\n' {
			if hasField {
				break // the end of the record
			}
			continue
		}
		if line[0] == '#' {
			continue
		}
		if line[0] != '+' { // else it continues a field
			hasField = true
			name, _, _ := bytes.Cut(line, []byte(":"))
			kind := slices.Index([]string{"URL", "Compression", "FileSize", "FileHash"}, string(name))
			switch list = &lines; {
			case kind < 0:
				list = nil
			case kind == 3:
				list = &hashes
			}
			if list != nil {
				file = counts[kind]
				counts[kind]++
			}
		}
		if list != nil {
			*list = append(*list, fileLine{start, offset, file})
		}
	}
	if counts[3] != len(n.Files) {
		return lines // which file a FileHash belongs to is not certain
	}
	lines = append(lines, hashes...)
	slices.SortFunc(lines, func(a, b fileLine) int { return a.start - b.start })
	return lines
}
