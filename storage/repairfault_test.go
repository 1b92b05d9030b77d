package storage_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"nar-herder/storage"
	"nar-herder/storage/bytestore"
	"nar-herder/storage/check"
	"nar-herder/storage/directory"
	"nar-herder/storage/importer"
	"nar-herder/storage/index"
)

// TestRepairFaults interrupts a repair at each step, in each way. No row may claim missing
// bytes, except one that did before. A repetition succeeds.
func TestRepairFaults(t *testing.T) {
	t.Parallel()
	for _, damage := range []string{"missing", "short", "corrupt"} {
		harm := damages[damage]
		for _, from := range []string{"good", "none"} {
			for _, mode := range []faultMode{power, once, dead} {
				t.Run(damage+"/"+from+"/"+mode.String(), func(t *testing.T) {
					t.Parallel()
					for at := 0; repairFault(t, damage, harm, from == "good", mode, at); at += stride {
					}
				})
			}
		}
	}
}

func repairFault(t *testing.T, damage string, harm func(t testing.TB, file, content string), good bool, mode faultMode, at int) (reached bool) {
	t.Helper()
	p := memoryPlace(t)
	faulty := &faultStore{mode: mode, at: -1}
	s, closeAll, err := p.open(func(bytes bytestore.Store) bytestore.Store {
		faulty.Directory = unwrap(bytes)
		return faulty
	})
	if err != nil {
		t.Fatal(err)
	}
	f, other := genuine(t, 1, "zstd"), genuine(t, 2, "gzip")
	importAll(t, s, importer.Options{}, laid(t, f, other))
	file := filepath.Join(p.store, f.name())
	harm(t, file, f.content)
	wrong, readErr := os.ReadFile(file)
	options := check.RepairOptions{Decode: decode}
	if good {
		options.Sources = []check.Source{source{"good", giving, []fake{f}}}
	}
	found := allFindings(t, s)
	if len(found) != 1 {
		t.Fatalf("found %+v", found)
	}
	faulty.mu.Lock()
	faulty.steps, faulty.at = 0, at
	faulty.mu.Unlock()
	crashed, err := try(func() error { return check.New(s).Repairer(options).Repair(t.Context(), found[0]).Err })
	reached = faulty.steps > at
	where := fmt.Sprintf("%v at step %d (%v)", mode, at, err)
	if crashed != (reached && mode == power) {
		t.Fatalf("%s: crashed %v, reached %v", where, crashed, reached)
	}
	if err := closeAll(); err != nil {
		t.Errorf("%s: close: %v", where, err)
	}

	// The rest runs as another process.
	s, closeAll, err = p.open(nil)
	if err != nil {
		t.Fatalf("%s: reopen: %v", where, err)
	}
	defer func() {
		if err := closeAll(); err != nil {
			t.Errorf("%s: close: %v", where, err)
		}
	}()
	for _, finding := range allFindings(t, s) {
		switch {
		case finding.Name == f.name() && finding.Kind == found[0].Kind: // as before
		case finding.Name == f.name() && finding.Kind == check.Unrecorded:
		case finding.Kind == check.Quarantined:
		case finding.Kind == check.Temporary && mode != once:
		default:
			t.Errorf("%s: then there is: %v %s", where, finding.Kind, finding.Name)
		}
	}
	if readErr == nil && !has(file, string(wrong)) && !has(filepath.Join(p.store, "quarantine", f.name()), string(wrong)) {
		t.Errorf("%s: the wrong file is lost", where)
	}
	wantServed(t, s, other)

	// Repeat it.
	later := storage.New(indexOf(t, p), unwrapped(t, p), storage.Options{Now: func() time.Time { return time.Now().Add(48 * time.Hour) }})
	repairer := check.New(later).Repairer(options)
	for _, finding := range allFindings(t, later) {
		if repair := repairer.Repair(t.Context(), finding); repair.Err != nil {
			t.Errorf("%s: once more: %v %s: %v", where, finding.Kind, finding.Name, repair.Err)
		}
	}
	for _, finding := range allFindings(t, later) {
		if finding.Kind != check.Quarantined {
			t.Errorf("%s: at the end: %v %s", where, finding.Kind, finding.Name)
		}
	}
	if content, err := stored(later, f.hash(), 0); good && (err != nil || content != f.content) || !good && !errors.Is(err, storage.ErrNotStored) {
		t.Errorf("%s: at the end: %v", where, err)
	}
	if t.Failed() {
		t.Logf("%s, %s: that was it", damage, where)
		return false
	}
	return reached
}

func indexOf(t testing.TB, p place) *index.Index {
	t.Helper()
	x, err := index.Open(t.Context(), p.database, index.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { x.Close() })
	return x
}

func unwrapped(t testing.TB, p place) *directory.Directory {
	t.Helper()
	bytes, err := directory.Open(p.store)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { bytes.Close() })
	return bytes
}
