package dump

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"

	"nar-herder/mirror/original"
	"nar-herder/narinfo"
	"nar-herder/storage/index"
)

// The test binary is also a process that makes dumps and is killed.
const (
	helperIndex = "DUMP_TEST_INDEX" // the database; makes it a helper
	helperPath  = "DUMP_TEST_PATH"  // of the dump
)

func TestMain(m *testing.M) {
	if database := os.Getenv(helperIndex); database != "" {
		fmt.Fprintln(os.Stderr, help(database, os.Getenv(helperPath)))
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// help makes dumps of a changing index until it is killed.
func help(database, path string) error {
	ctx := context.Background()
	x, err := index.Open(ctx, database, index.Options{})
	if err != nil {
		return err
	}
	m, err := New(x, Options{Path: path})
	if err != nil {
		return err
	}
	for n := 1_000_000; ; n++ {
		fmt.Println(n)
		if err := add(ctx, x, n); err != nil {
			return err
		}
		if _, err := m.Make(ctx); err != nil {
			return err
		}
	}
}

func hashOf(n int) (hash narinfo.PathHash) {
	return narinfo.PathHash(bytes.Repeat(fmt.Appendf(nil, "%05d", n%100_000), 4))
}

// narinfoOf makes the narinfo of the Nth item.
func narinfoOf(n int) *narinfo.Narinfo {
	path := narinfo.StorePath{Hash: hashOf(n), Name: fmt.Sprintf("item-%d", n)}
	sum := sha256.Sum256([]byte(path.Name))
	text := fmt.Sprintf("StorePath: %s\nNarHash: sha256:%s\nNarSize: %d\nReferences: %s %s\nSystem: x86_64-linux\nDeriver: %s.drv\nSignature: 1;x;%x%x\nURL: nar/lzip/%s\nCompression: lzip\nFileSize: %d\n",
		path, strings.Repeat("0", 52), 1000+n, path.BaseName(), narinfo.StorePath{Hash: hashOf(0), Name: "item-0"}.BaseName(), path.BaseName(), sum, sum, path.BaseName(), 10+n)
	info, err := narinfo.Parse([]byte(text))
	if err != nil {
		panic(err)
	}
	return info
}

var testTime = time.Date(2024, 2, 29, 23, 59, 58, 0, time.UTC)

// add adds items in one transaction.
func add(ctx context.Context, x *index.Index, numbers ...int) error {
	return x.Update(ctx, func(tx *index.Tx) error {
		for _, n := range numbers {
			info := narinfoOf(n)
			old, err := tx.Item(info.StorePath.Hash)
			if err != nil && err != index.ErrNotFound {
				return err
			}
			entry := x.Prepare(info)
			entry.AddedAt, entry.Stored = testTime.Add(time.Duration(n)*time.Second), 1
			if err := tx.Put(entry, old); err != nil {
				return err
			}
		}
		return nil
	})
}

func openIndex(t testing.TB, path string) *index.Index {
	t.Helper()
	x, err := index.Open(context.Background(), path, index.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { x.Close() })
	return x
}

// newIndex has items 0 to count-1.
func newIndex(t testing.TB, count int) *index.Index {
	t.Helper()
	x := openIndex(t, filepath.Join(t.TempDir(), "index"))
	for from := 0; from < count; from += 1000 {
		var numbers []int
		for n := from; n < min(count, from+1000); n++ {
			numbers = append(numbers, n)
		}
		must(t, add(t.Context(), x, numbers...))
	}
	return x
}

func newMaker(t testing.TB, x *index.Index, path string) *Maker {
	t.Helper()
	m, err := New(x, Options{Path: path})
	must(t, err)
	return m
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// unlocked retries a function while the dumps are locked. A child process of another test
// shares the descriptor of the lock until its program begins.
// another test starts has the descriptor of the lock, too, until its program begins.
func unlocked[T any](t testing.TB, f func() (T, error)) (T, error) {
	for {
		if result, err := f(); !errors.Is(err, ErrBusy) || t.Context().Err() != nil {
			return result, err
		}
		runtime.Gosched()
	}
}

func mustMake(t testing.TB, m *Maker) Generation {
	t.Helper()
	g, err := unlocked(t, func() (Generation, error) { return m.Make(t.Context()) })
	must(t, err)
	generations, err := m.Published().Generations()
	must(t, err)
	if len(generations) == 0 {
		t.Fatal("no dump is published")
	}
	if generations[0].CreatedAt != g.CreatedAt || generations[0].LastChange != g.LastChange {
		t.Errorf("%+v is published, and %+v was made", generations[0], g)
	}
	return generations[0]
}

// content reads a file of a dump, and compares it with the manifest.
func content(t testing.TB, p *Published, file File) []byte {
	t.Helper()
	opened, err := p.Open(file)
	must(t, err)
	defer opened.Close()
	text, err := io.ReadAll(opened)
	must(t, err)
	if int64(len(text)) != file.Size || Digest(sha256.Sum256(text)) != file.SHA256 {
		t.Errorf("%s has %d bytes with the digest %x; the manifest says %d with %s", file.Name, len(text), sha256.Sum256(text), file.Size, file.SHA256)
	}
	return text
}

// stateOf returns the texts in a file, in the order of the paths.
type stateOf struct {
	texts   []string
	changes []string
	info    map[string]string
}

// wantSame asserts that the files of a generation have the same items.
func wantSame(t testing.TB, p *Published, g Generation) stateOf {
	t.Helper()
	directory := t.TempDir()
	database := content(t, p, g.Database)
	decoder, err := zstd.NewReader(bytes.NewReader(content(t, p, g.Zstd)), zstd.WithDecoderMaxWindow(8<<20))
	must(t, err)
	defer decoder.Close()
	unpacked, err := io.ReadAll(decoder)
	must(t, err)
	if !bytes.Equal(unpacked, database) {
		t.Error("the compressed database is another")
	}
	must(t, os.WriteFile(filepath.Join(directory, "database"), database, 0o644))
	must(t, os.WriteFile(filepath.Join(directory, "index"), content(t, p, g.Index), 0o644))

	var state stateOf
	db, err := original.Open(t.Context(), filepath.Join(directory, "database"))
	must(t, err)
	defer db.Close()
	times := make(map[string]time.Time)
	for item, err := range db.Items(t.Context(), original.FromStart) {
		must(t, err)
		if len(item.Tags) > 0 || len(item.Cached) > 0 {
			t.Errorf("an item has %v and %v", item.Tags, item.Cached)
		}
		state.texts = append(state.texts, string(item.Text))
		times[string(item.Text)] = item.AddedAt
	}
	for change, err := range db.Changes(t.Context()) {
		must(t, err)
		state.changes = append(state.changes, fmt.Sprint(change.At.Format(time.DateTime), " ", change.Removal, " ", change.Data))
	}
	if state.info, err = db.Info(t.Context()); err != nil {
		t.Error(err)
	}

	x := openIndex(t, filepath.Join(directory, "index"))
	count := 0
	for item, err := range x.Items(t.Context()) {
		must(t, err)
		count++
		if at, ok := times[string(item.Text)]; !ok || !at.Equal(item.AddedAt) {
			t.Errorf("the index has %s since %v, the database %v", item.Hash, item.AddedAt, at)
		}
	}
	if count != len(state.texts) || int64(count) != g.Items {
		t.Errorf("%d items in the index, %d in the database, %d in the manifest", count, len(state.texts), g.Items)
	}
	for name, want := range map[string]string{
		index.CopyInstance: g.Instance, index.CopyLastChange: fmt.Sprint(g.LastChange), index.CopyCreatedAt: g.CreatedAt.Format(time.RFC3339),
	} {
		if got, err := x.Setting(t.Context(), name); err != nil || got != want {
			t.Errorf("setting %s is %q, %v; want %q", name, got, err, want)
		}
	}
	slices.Sort(state.texts)
	return state
}

// names lists a directory, without generations and times.
func names(t testing.TB, directory string) (found []string) {
	t.Helper()
	entries, err := os.ReadDir(directory)
	must(t, err)
	for _, entry := range entries {
		found = append(found, entry.Name())
	}
	return found
}

// runSQLite runs the program sqlite3, an independent reader.
func runSQLite(t testing.TB, path, script string) string {
	t.Helper()
	program, err := exec.LookPath("sqlite3")
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	out, err := exec.Command(program, "-readonly", path, script).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return string(out)
}

// wantError asserts that an error is of the kind and says what to do.
func wantError(t testing.TB, err, is error, says ...string) {
	t.Helper()
	if err == nil || is != nil && !errors.Is(err, is) {
		t.Fatalf("%v, want %v", err, is)
	}
	for _, text := range says {
		if !strings.Contains(err.Error(), text) {
			t.Errorf("%q is not in: %v", text, err)
		}
	}
}
