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
	// Mark differs between two changes with the same id, as after a backup of the index was
	// restored; "" in manifests of earlier versions.
	Mark string `json:"mark,omitempty"`
	// CreatedAt is the time of that state, UTC and in whole seconds.
	CreatedAt time.Time `json:"created_at"`
	Items     int64     `json:"items"`
	// Damaged is how many damaged items of the index are missing.
	Damaged int64 `json:"damaged,omitempty"`
	// Database has the original's schema, and Zstd is the same, compressed. Index
	// is an index of this program.
	Database File `json:"database"`
	Zstd     File `json:"zstd"`
	Index    File `json:"index"`
}

// File is a file of a dump.
type File struct {
	// Name is the base name. It is never reused, so that the digest stays valid.
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
		return fmt.Errorf("%q is not a SHA-256 in hexadecimal", text)
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

// manifest lists the dumps. It is written last, by a rename: files that it names are complete
// and synced, and others are not served.
type manifest struct {
	// Generations are the newest first.
	Generations []Generation `json:"generations"`
	// Marks are some dumps of the last weeks, the oldest first. They show how long a change
	// has been in the log: its own time may be that of another instance, years ago.
	Marks []mark `json:"marks,omitempty"`
}

// mark is the newest change in the log at a time.
type mark struct {
	LastChange int64     `json:"last_change"`
	At         time.Time `json:"at"`
}

// markEvery is the shortest time between two marks.
const markEvery = 12 * time.Hour

// marksWith returns the marks with that of another dump.
func (m *manifest) marksWith(g Generation) (marks []mark) {
	for _, old := range m.Marks {
		// Skip it if the index or the clock has gone back.
		if old.LastChange > g.LastChange || old.At.After(g.CreatedAt) {
			continue
		}
		if g.CreatedAt.Sub(old.At) >= changesAge {
			marks = marks[:0] // the newest old mark is enough
		}
		marks = append(marks, old)
	}
	if len(marks) == 0 || g.CreatedAt.Sub(marks[len(marks)-1].At) >= markEvery {
		marks = append(marks, mark{g.LastChange, g.CreatedAt})
	}
	return marks
}

// old returns the newest change that has been in the log for [changesAge]; 0 if unknown.
func (m *manifest) old(now time.Time) (upTo int64) {
	for _, mark := range m.Marks {
		if now.Sub(mark.At) >= changesAge {
			upTo = max(upTo, mark.LastChange)
		}
	}
	return upTo
}

// manifestSuffix is added to the dump's name for the manifest.
const manifestSuffix = ".json"

// errManifest reports a manifest that makes no sense.
var errManifest = errors.New("it makes no sense")

// readManifest returns an empty manifest if there is none. The error is errManifest if its
// content makes no sense.
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
				err = fmt.Errorf("%w: %q of %d bytes is not a file of a dump", errManifest, file.Name, file.Size)
			}
		}
	}
	if err != nil {
		return manifest{}, fmt.Errorf("read the manifest of dumps %s: %w", path+manifestSuffix, err)
	}
	return m, nil
}

// writeManifest replaces the manifest. temporary is a name in the same directory.
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
		return fmt.Errorf("write the manifest of dumps %s: %w", path+manifestSuffix, err)
	}
	return nil
}
