package dump

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"nar-herder/internal/rounds"
	"nar-herder/internal/testfs"
	"nar-herder/storage/index"
)

// TestKilled: after a process that makes dumps is killed at any point, the published dump
// is complete, and the next process cleans up.
func TestKilled(t *testing.T) {
	t.Parallel()
	x := newIndex(t, 300)
	directory := t.TempDir()
	path := filepath.Join(directory, "dump.db")
	program, err := os.Executable()
	must(t, err)
	m := newMaker(t, x, path)
	left := 0
	kills := rounds.Of(8)
	for kill := range kills {
		command := exec.Command(program)
		command.Env = append(os.Environ(), helperIndex+"="+x.Path(), helperPath+"="+path)
		out, err := command.StdoutPipe()
		must(t, err)
		must(t, command.Start())
		begun := bufio.NewScanner(out)
		for range 1 + kill%2 {
			begun.Scan()
		}
		// A dump takes some tens of milliseconds here.
		timer := time.AfterFunc(time.Duration(kill)*110*time.Millisecond/time.Duration(kills), func() { _ = command.Process.Kill() })
		for begun.Scan() {
		}
		_ = command.Wait() // killed
		timer.Stop()
		if command.ProcessState.ExitCode() == 1 {
			t.Fatal("it has failed by itself")
		}
		if slices.ContainsFunc(names(t, directory), func(name string) bool { return strings.Contains(name, temporaryInfix) }) {
			left++
		}
		generations, err := NewPublished(path, x).Generations()
		must(t, err)
		for _, g := range generations {
			wantSame(t, m.Published(), g)
		}
	}
	g := mustMake(t, m)
	wantSame(t, m.Published(), g)
	got := names(t, directory)
	if slices.ContainsFunc(got, func(name string) bool { return strings.Contains(name, temporaryInfix) }) || len(got) != 5+6 && len(got) != 5+3 {
		t.Errorf("at the end there are %q", got)
	}
	if left == 0 {
		t.Error("no kill interrupted a dump")
	}
	if plain, err := os.ReadFile(path); err != nil || int64(len(plain)) != g.Database.Size {
		t.Errorf("%d bytes, %v", len(plain), err)
	}
}

// TestBusy: two processes, or two makers in one, don't make a dump at the same time.
func TestBusy(t *testing.T) {
	t.Parallel()
	x := newIndex(t, 3)
	path := filepath.Join(t.TempDir(), "dump.db")
	m := newMaker(t, x, path)
	unlock, err := lock(path)
	must(t, err)
	_, err = newMaker(t, x, path).Make(t.Context())
	wantError(t, err, ErrBusy, path, "wait")
	must(t, unlock())
	mustMake(t, m)
}

// TestFullDisk: the old dump stays, and a failed one leaves no files.
func TestFullDisk(t *testing.T) {
	t.Parallel()
	x := newIndex(t, 200)
	directory := testfs.Small(t, 2<<20+512<<10)
	path := filepath.Join(directory, "dump.db")
	m := newMaker(t, x, path)
	first := mustMake(t, m)
	before := names(t, directory)
	stays := func() {
		t.Helper()
		wantSame(t, m.Published(), first)
		if got := names(t, directory); !slices.Equal(got, before) {
			t.Errorf("the directory has %q, and had %q", got, before)
		}
	}
	// There is room for a dump like the first, so it begins, but fails.
	for n := 200; n < 4000; n += 200 {
		var more []int
		for i := range 200 {
			more = append(more, n+i)
		}
		must(t, add(t.Context(), x, more...))
	}
	_, err := m.Make(t.Context())
	wantError(t, err, index.ErrFull, path, "free some room", "--database-dump")
	stays()
	// Now it does not begin.
	free := testfs.Fill(t, directory)
	_, err = m.Make(t.Context())
	wantError(t, err, index.ErrFull, "takes about", "--database-dump")
	free()
	stays()
	_, err = newMaker(t, x, filepath.Join(testfs.Small(t, 1<<20), "dump.db")).Make(t.Context())
	wantError(t, err, index.ErrFull, "takes about")
}

// TestCancelled: stopping the program does not wait for a dump.
func TestCancelled(t *testing.T) {
	t.Parallel()
	x := newIndex(t, 4000)
	directory := t.TempDir()
	m := newMaker(t, x, filepath.Join(directory, "dump.db"))
	begun := time.Now()
	mustMake(t, m)
	whole := time.Since(begun)
	first := names(t, directory)
	parts := rounds.Of(6)
	for part := range parts {
		ctx, cancel := context.WithCancelCause(t.Context())
		timer := time.AfterFunc(whole*time.Duration(part)/time.Duration(parts), func() { cancel(errors.New("enough")) })
		if _, err := unlocked(t, func() (Generation, error) { return m.Make(ctx) }); err == nil {
			timer.Stop()
			cancel(nil)
			first = names(t, directory) // faster this time
			continue
		} else if !errors.Is(err, context.Canceled) {
			t.Errorf("%v, want context.Canceled", err)
		}
		timer.Stop()
		cancel(nil)
		_, err := unlocked(t, func() (any, error) { return nil, m.Tidy() })
		must(t, err)
		// The generation before the newest may have been removed.
		for _, name := range names(t, directory) {
			if !slices.Contains(first, name) {
				t.Errorf("%s was left", name)
			}
		}
	}
	generations, err := m.Published().Generations()
	must(t, err)
	wantSame(t, m.Published(), generations[0])
}

// TestTidy: a starting server removes the files of a killed process, and gives the newest
// dump its names, except while another process makes a dump.
func TestTidy(t *testing.T) {
	t.Parallel()
	x := newIndex(t, 3)
	directory := t.TempDir()
	path := filepath.Join(directory, "dump.db")
	m := newMaker(t, x, path)
	must(t, m.Tidy())
	if got := names(t, directory); len(got) != 0 {
		t.Errorf("an empty directory has %q", got)
	}
	g := mustMake(t, m)
	before := names(t, directory)
	left := filepath.Join(directory, "dump.db.tmp-1.index")
	must(t, os.WriteFile(left, nil, 0o644))
	must(t, os.Remove(path))
	unlock, err := lock(path)
	must(t, err)
	ended, end := context.WithCancel(t.Context())
	end()
	m.Run(ended)
	if _, err := os.Stat(left); err != nil {
		t.Errorf("the file of another process was removed: %v", err)
	}
	must(t, unlock())
	m.Run(ended)
	if got := names(t, directory); !slices.Equal(got, before) {
		t.Errorf("there are %q, and were %q", got, before)
	}
	if info, err := os.Stat(path); err != nil || info.Size() != g.Database.Size {
		t.Errorf("%v, %v", info, err)
	}
}

// TestReadOnlyDirectory: the existing dump is still served.
func TestReadOnlyDirectory(t *testing.T) {
	t.Parallel()
	x := newIndex(t, 3)
	directory := t.TempDir()
	g := mustMake(t, newMaker(t, x, filepath.Join(directory, "dump.db")))
	m := newMaker(t, x, filepath.Join(testfs.ReadOnly(t, directory), "dump.db"))
	_, err := m.Make(t.Context())
	wantError(t, err, nil, "may write to", "--database-dump")
	wantSame(t, m.Published(), g)

	_, err = newMaker(t, x, filepath.Join(directory, "none", "dump.db")).Make(t.Context())
	wantError(t, err, fs.ErrNotExist, filepath.Join(directory, "none"), "--database-dump")
}

// TestPlace: only dumps are overwritten.
func TestPlace(t *testing.T) {
	t.Parallel()
	x := newIndex(t, 3)
	other := newIndex(t, 3)
	directory := t.TempDir()
	text := filepath.Join(directory, "text")
	must(t, os.WriteFile(text, []byte(strings.Repeat("text ", 100)), 0o644))
	link := filepath.Join(directory, "link")
	must(t, os.Symlink(x.Path(), link))
	for _, path := range []string{x.Path(), link, other.Path(), text, directory} {
		_, err := New(x, Options{Path: path})
		wantError(t, err, nil, "--database-dump", path)
	}
	// A dump of the original and an empty file are overwritten.
	original := filepath.Join(directory, "original")
	must(t, os.WriteFile(original, append([]byte("SQLite format 3\x00"), make([]byte, 4080)...), 0o644))
	empty := filepath.Join(directory, "empty")
	must(t, os.WriteFile(empty, nil, 0o644))
	for _, path := range []string{original, empty} {
		m := newMaker(t, x, path)
		wantSame(t, m.Published(), mustMake(t, m))
	}
	// The file may have been replaced since the start.
	m := newMaker(t, x, filepath.Join(directory, "later"))
	must(t, os.WriteFile(filepath.Join(directory, "later"), []byte("text"), 0o644))
	_, err := m.Make(t.Context())
	wantError(t, err, nil, "later", "--database-dump")
}

// TestForeignFiles: a file with a name like a dump's that isn't a dump stays.
func TestForeignFiles(t *testing.T) {
	t.Parallel()
	x := newIndex(t, 3)
	directory := t.TempDir()
	path := filepath.Join(directory, "dump.db")
	foreign := []string{"dump.db.dump-2024", "dump.db.dump-1-2.gz", "dump.db.old", "dump.db2", "other.tmp-1"}
	gone := []string{"dump.db.tmp-1", "dump.db.tmp-1.index", "dump.db.dump-1-2", "dump.db.dump-1-2.zst", "dump.db.dump-1-2.index"}
	for _, name := range slices.Concat(foreign, gone) {
		must(t, os.WriteFile(filepath.Join(directory, name), nil, 0o644))
	}
	m := newMaker(t, x, path)
	mustMake(t, m)
	mustMake(t, m)
	got := names(t, directory)
	for _, name := range foreign {
		if !slices.Contains(got, name) {
			t.Errorf("%s was removed", name)
		}
	}
	for _, name := range gone {
		if slices.Contains(got, name) {
			t.Errorf("%s was left", name)
		}
	}
}

// TestPublished: the served dumps are those of the manifest, and of this instance.
func TestPublished(t *testing.T) {
	t.Parallel()
	x := newIndex(t, 3)
	path := filepath.Join(t.TempDir(), "dump.db")
	m := newMaker(t, x, path)
	g := mustMake(t, m)
	if generations, err := NewPublished(path, newIndex(t, 50)).Generations(); err != nil || len(generations) != 0 {
		t.Errorf("another instance's: %v, %v", generations, err)
	}
	// Another process makes one.
	published := NewPublished(path, x)
	for range 3 {
		generations, err := published.Generations()
		must(t, err)
		if generations[0] != g {
			t.Errorf("%+v, want %+v", generations[0], g)
		}
		g = mustMake(t, newMaker(t, x, path))
	}
	// Another program writes to the file, or removes it.
	name := filepath.Join(filepath.Dir(path), g.Index.Name)
	must(t, os.Truncate(name, g.Index.Size-1))
	_, err := published.Open(g.Index)
	wantError(t, err, nil, "changed", "nar-herder dump")
	must(t, os.Remove(name))
	_, err = published.Open(g.Index)
	wantError(t, err, fs.ErrNotExist)

	// So another dump is due, although nothing has changed.
	m.options.Interval = time.Hour
	if _, err := m.step(t.Context()); err != nil {
		t.Error(err)
	}
	generations, err := published.Generations()
	must(t, err)
	if len(generations) != 2 || generations[1].LastChange != generations[0].LastChange {
		t.Fatalf("%+v are there", generations)
	}
	wantSame(t, published, generations[0])
	wantSame(t, published, generations[1])

	for _, text := range []string{
		"", "{", `{"generations": [{"index": {"name": "../../etc/passwd", "size": 1}}]}`,
		fmt.Sprintf(`{"generations": [{"instance": %s, "database": {"name": "dump.db.dump-1-1/../../x", "size": 3}}]}`, strconv.Quote(x.Instance())),
		`{"generations": [{"index": {"sha256": "12"}}]}`,
	} {
		must(t, os.Remove(path+manifestSuffix))
		must(t, os.WriteFile(path+manifestSuffix, []byte(text), 0o644))
		if generations, err := published.Generations(); err == nil {
			t.Errorf("%q gives %v", text, generations)
		}
	}
	wantSame(t, m.Published(), mustMake(t, m))
	must(t, os.Remove(path+manifestSuffix))
	if generations, err := published.Generations(); err != nil || len(generations) != 0 {
		t.Errorf("without a manifest: %v, %v", generations, err)
	}
}

// TestBackup: after an older state of the index is restored, dumps that were made after it
// are not served, and another is made at once.
func TestBackup(t *testing.T) {
	t.Parallel()
	x := newIndex(t, 3)
	path := filepath.Join(t.TempDir(), "dump.db")
	backup := filepath.Join(t.TempDir(), "backup")
	mustMake(t, newMaker(t, x, path))
	must(t, x.Close())
	text, err := os.ReadFile(x.Path())
	must(t, err)
	must(t, os.WriteFile(backup, text, 0o644))
	x = openIndex(t, x.Path())
	must(t, add(t.Context(), x, 3, 4))
	mustMake(t, newMaker(t, x, path))

	x = openIndex(t, backup)
	m := newMaker(t, x, path)
	m.options.Interval = 24 * time.Hour
	generations, err := m.Published().Generations()
	if err != nil || len(generations) != 1 || generations[0].LastChange != 3 {
		t.Errorf("served are %+v, %v; want only the older one", generations, err)
	}
	must(t, add(t.Context(), x, 7))
	mustMake(t, m)
	if generations, err = m.Published().Generations(); err != nil || len(generations) != 2 || generations[0].LastChange != 4 || generations[1].LastChange != 3 {
		t.Errorf("served are %+v, %v", generations, err)
	}
	// They are not served later either, when other changes have the same numbers.
	must(t, os.WriteFile(backup+"1", text, 0o644))
	x = openIndex(t, backup+"1")
	must(t, add(t.Context(), x, 5, 6))
	if generations, err = NewPublished(path, x).Generations(); err != nil || len(generations) != 1 || generations[0].LastChange != 3 {
		t.Errorf("after other changes: served are %+v, %v", generations, err)
	}
	x = m.index
	// With newer generations only, none is served until the next dump.
	must(t, add(t.Context(), x, 8, 9))
	mustMake(t, m)
	mustMake(t, m)
	must(t, os.WriteFile(backup+"2", text, 0o644))
	x = openIndex(t, backup+"2")
	m = newMaker(t, x, path)
	m.options.Interval = 24 * time.Hour
	if generations, err = m.Published().Generations(); err != nil || len(generations) != 0 {
		t.Errorf("served are %+v, %v", generations, err)
	}
	if _, err := m.step(t.Context()); err != nil {
		t.Error(err)
	}
	generations, err = m.Published().Generations()
	if err != nil || len(generations) != 1 || generations[0].LastChange != 3 {
		t.Fatalf("then: %+v, %v", generations, err)
	}
	wantSame(t, m.Published(), generations[0])
}
