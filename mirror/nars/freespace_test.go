package nars

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"nar-herder/storage"
	"nar-herder/storage/directory"
)

// volume is a directory on a file system with room for so many bytes.
type volume struct {
	*directory.Directory
	name string
	size int64
}

func (v volume) FreeSpace() (free, size int64, err error) {
	free = v.size
	err = filepath.WalkDir(v.name, func(_ string, entry os.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return nil // it was moved just now
		}
		if info, err := entry.Info(); err == nil {
			free -= info.Size()
		}
		return nil
	})
	return free, v.size, err
}

// TestMinimumFree: background downloads leave the minimum free, with a margin, and resume
// when there is more room.
func TestMinimumFree(t *testing.T) {
	t.Parallel()
	const size, each = 10 << 20, 100_000
	const minimum = size - 5*each
	const margin = minimum / 50 // that background downloads leave free besides
	items := many(t, 12, each)
	from := newSource(t, items...)
	m := newMirror(t, items...)
	store, err := directory.Open(m.dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := store.Close(); err != nil {
			t.Error(err)
		}
	})
	v := volume{store, m.dir, size}
	m.Storage = storage.New(m.index, v, storage.Options{})
	if err := m.SetMinimumFree(t.Context(), minimum); err != nil {
		t.Fatal(err)
	}
	f := m.fetcher(from, Options{All: true})
	run(t, f)
	until(t, "there is no room", func() bool {
		return strings.Contains(m.log.String(), "there is no room in the storage") && f.Status().InFlight == 0
	})
	stored := m.count(items)
	if free, _, err := v.FreeSpace(); err != nil || free < minimum+margin {
		t.Errorf("%d bytes are free with %d nars, %v; the minimum is %d", free, stored, err, minimum)
	}
	// A client gets one of the others, which is stored if that leaves the minimum.
	for _, item := range items {
		if !m.stored(item) {
			read(t, f, m.item(item), item.files[item.names[0]])
			break
		}
	}
	until(t, "nothing is in download", func() bool { return f.Status().InFlight == 0 })
	if free, _, err := v.FreeSpace(); err != nil || free < minimum {
		t.Errorf("%d bytes are free, %v; the minimum is %d", free, err, minimum)
	}
	if err := m.SetMinimumFree(t.Context(), size-20*each); err != nil {
		t.Fatal(err)
	}
	m.wantStored(items...)
	m.wantConsistent()
}
