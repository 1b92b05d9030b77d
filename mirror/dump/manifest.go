package dump

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"nar-herder/internal/disk"
)

// Generation is a dump: three files that hold the same state of an index.
type Generation struct {
	// Instance is the name of the index, and LastChange the id of the newest of
	// its changes that the dump has.
	Instance   string `json:"instance"`
	LastChange int64  `json:"last_change"`
	// Mark tells that change from another with its id, as after a backup of the index was
	// restored; "" in manifests of earlier versions.
	Mark string `json:"mark,omitempty"`
	// CreatedAt is the time of that state, UTC and in whole seconds.
	CreatedAt time.Time `json:"created_at"`
	Items     int64     `json:"items"`
	// Damaged is how many items the index has beside them, which are damaged.
	Damaged int64 `json:"damaged,omitempty"`
	// Database has the original's schema, and Zstd is the same, compressed. Index
	// is an index of this program.
	Database File `json:"database"`
	Zstd     File `json:"zstd"`
	Index    File `json:"index"`
}

// File is one of a dump.
type File struct {
	// Name is that in the directory of the dump. No other file ever gets it, so
	// the digest can't come to be of another.
	Name   string `json:"name"`
	Size   int64  `json:"size"`
	SHA256 Digest `json:"sha256"`
}

// Digest is a SHA-256, written in hexadecimal.
type Digest [32]byte

// MarshalText is for [json.Marshal].
func (d Digest) MarshalText() ([]byte, error) { return hex.AppendEncode(nil, d[:]), nil }

// UnmarshalText is for [json.Unmarshal].
func (d *Digest) UnmarshalText(text []byte) error {
	if hex.DecodedLen(len(text)) != len(d) {
		return fmt.Errorf("%q is no SHA-256 in hexadecimal", text)
	}
	_, err := hex.Decode(d[:], text)
	return err
}

func (d Digest) String() string { return hex.EncodeToString(d[:]) }

func (g *Generation) files() []File { return []File{g.Database, g.Zstd, g.Index} }

// Size is the sum of the files' lengths, in bytes.
func (g *Generation) Size() (sum int64) {
	for _, file := range g.files() {
		sum += file.Size
	}
	return sum
}

// manifest says which dumps there are. It is written last, by a rename: what it
// names is whole and on the disk, and what it does not name is not served.
type manifest struct {
	// Generations are the newest first.
	Generations []Generation `json:"generations"`
	// Marks are some of the dumps that there were in the last weeks, the oldest
	// first. By them it is known how long a change has been in the log, whose own
	// time may be that of another instance, years ago.
	Marks []mark `json:"marks,omitempty"`
}

// mark says when the log had come to which change.
type mark struct {
	LastChange int64     `json:"last_change"`
	At         time.Time `json:"at"`
}

// markEvery is how far two marks are from each other, so that there are few.
const markEvery = 12 * time.Hour

// marksWith returns the marks with that of another dump.
func (m *manifest) marksWith(g Generation) (marks []mark) {
	for _, old := range m.Marks {
		// Else the index has gone back, or the clock has.
		if old.LastChange > g.LastChange || old.At.After(g.CreatedAt) {
			continue
		}
		if g.CreatedAt.Sub(old.At) >= changesAge {
			marks = marks[:0] // the newest of those that are so old is enough
		}
		marks = append(marks, old)
	}
	if len(marks) == 0 || g.CreatedAt.Sub(marks[len(marks)-1].At) >= markEvery {
		marks = append(marks, mark{g.LastChange, g.CreatedAt})
	}
	return marks
}

// old returns up to which change the log has been there for [changesAge] at a time;
// 0 when that is not known of any.
func (m *manifest) old(now time.Time) (upTo int64) {
	for _, mark := range m.Marks {
		if now.Sub(mark.At) >= changesAge {
			upTo = max(upTo, mark.LastChange)
		}
	}
	return upTo
}

// manifestSuffix is that of the manifest's name, after the dump's.
const manifestSuffix = ".json"

// errManifest says that a manifest makes no sense.
var errManifest = errors.New("it makes no sense")

// readManifest returns an empty one where there is none. The error is errManifest
// when it was read, and can't be believed.
func readManifest(path string) (m manifest, err error) {
	text, err := os.ReadFile(path + manifestSuffix)
	if errors.Is(err, fs.ErrNotExist) {
		return manifest{}, nil
	}
	if err == nil {
		if err = json.Unmarshal(text, &m); err != nil {
			err = fmt.Errorf("%w: %w", errManifest, err)
		}
	}
	base := filepath.Base(path)
	for _, g := range m.Generations {
		for _, file := range g.files() {
			if err == nil && (!strings.HasPrefix(file.Name, base+generationInfix) || strings.ContainsRune(file.Name, filepath.Separator) || file.Size <= 0) {
				err = fmt.Errorf("%w: %q of %d bytes is no file of a dump", errManifest, file.Name, file.Size)
			}
		}
	}
	if err != nil {
		return manifest{}, fmt.Errorf("read which dumps there are, in %s: %w", path+manifestSuffix, err)
	}
	return m, nil
}

// writeManifest replaces it. temporary is a name in the same directory.
func writeManifest(path, temporary string, m manifest) error {
	text, err := json.MarshalIndent(m, "", "\t")
	if err != nil {
		return err
	}
	file, err := disk.OpenFile(temporary, os.O_WRONLY|os.O_TRUNC, 0o644, disk.GroupWrites)
	if err != nil {
		return err
	}
	_, err = file.Write(append(text, '\n'))
	if err == nil {
		err = file.Sync()
	}
	err = errors.Join(err, file.Close())
	if err == nil {
		err = os.Rename(temporary, path+manifestSuffix)
	}
	if err == nil {
		err = disk.SyncDirectory(path)
	}
	if err != nil {
		return fmt.Errorf("write which dumps there are, to %s: %w", path+manifestSuffix, err)
	}
	return nil
}
