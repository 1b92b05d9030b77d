package main

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	mathrand "math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"nar-herder/mirror/original"
	"nar-herder/narinfo"
	"nar-herder/narinfo/signing"
)

// gzipFarm makes a directory of items in several compressions. One has its blocks above the
// signature,
// and one has only a gzip nar.
func gzipFarm(t *testing.T) (dir string, texts map[string]string) {
	t.Helper()
	dir = t.TempDir()
	if err := os.CopyFS(dir, os.DirFS(filepath.Join(testdata, "published-multi"))); err != nil {
		t.Fatal(err)
	}
	// It refers to an item that isn't there.
	if err := os.Remove(filepath.Join(dir, narinfoName(profile))); err != nil {
		t.Fatal(err)
	}
	key, err := signing.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	texts = make(map[string]string)
	files, err := filepath.Glob(filepath.Join(dir, "*.narinfo"))
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		name := filepath.Base(file)
		text := []byte(read(t, file))
		switch name {
		case narinfoName(greet):
			var lines []string
			for line := range strings.Lines(string(text)) {
				if !strings.HasPrefix(line, "Signature:") {
					lines = append(lines, line)
				}
			}
			n, err := narinfo.Parse([]byte(strings.Join(lines, "") + "Signature: 1;h;AAAA\n"))
			if err != nil {
				t.Fatal(err)
			}
			if text, err = n.Sign(key, "test"); err != nil {
				t.Fatal(err)
			}
		case narinfoName(libgreet):
			n, err := narinfo.Parse(text)
			if err != nil {
				t.Fatal(err)
			}
			text = n.WithoutFiles(0b110)
		}
		if err := os.WriteFile(file, text, 0o644); err != nil {
			t.Fatal(err)
		}
		texts[name] = string(text)
	}
	return dir, texts
}

// withoutGzip returns a narinfo of the farm as it is announced after gzip was dropped.
func withoutGzip(t testing.TB, name, text string) string {
	t.Helper()
	if name == narinfoName(greet) || name == narinfoName(libgreet) {
		return text
	}
	before, after, ok1 := strings.Cut(text, "URL: nar/gzip/")
	_, after, ok2 := strings.Cut(after, "URL: nar/lzip/")
	if !ok1 || !ok2 {
		t.Fatalf("%s has other blocks: %s", name, text)
	}
	return before + "URL: nar/lzip/" + after
}

// droppedGzip asserts what a server announces after gzip was dropped, and the status of requests
// for the dropped nars.
func droppedGzip(t testing.TB, address string, texts map[string]string, status int) {
	t.Helper()
	for name, text := range texts {
		if got := get(t, address, "/"+name); got.StatusCode != 200 || got.body != withoutGzip(t, name, text) {
			t.Errorf("%s: %s, %s", name, got.Status, got.body)
		}
		n, err := narinfo.Parse([]byte(text))
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range n.Files {
			want := 200
			if file.Compression == "gzip" && len(n.Files) > 1 {
				want = status
			}
			got := get(t, address, "/"+file.URL)
			if got.StatusCode != want || want == 200 && int64(len(got.body)) != file.Size {
				t.Errorf("%s: %s, %d bytes, want %d", file.URL, got.Status, len(got.body), want)
			}
		}
	}
}

// endGraceOfDropped makes the time pass after which dropped files may be deleted.
func (p place) endGraceOfDropped(t *testing.T) {
	t.Helper()
	execute(t, p.database, "PRAGMA busy_timeout = 60000", fmt.Sprintf("UPDATE items SET drop_after = %d WHERE drop_after != 0", time.Now().Add(-time.Second).UnixMilli()))
}

// nars returns the names of the stored files of a compression.
func (p place) nars(t testing.TB, compression string) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(p.storage, "nar", compression))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	for _, entry := range entries {
		names = append(names, entry.Name())
	}
	return names
}

// recentTexts returns the narinfos in the recent changes, the last of each item.
func recentTexts(t testing.TB, address string) map[string]string {
	t.Helper()
	var changes struct {
		Changes []struct{ Change, Data string } `json:"recent_changes"`
	}
	if err := json.Unmarshal([]byte(get(t, address, "/recent-changes?since=2000-01-01%2000:00:00").body), &changes); err != nil {
		t.Fatal(err)
	}
	texts := make(map[string]string)
	for _, change := range changes.Changes {
		n, err := narinfo.Parse([]byte(change.Data))
		if change.Change != "addition" || err != nil {
			t.Fatalf("%+v", change)
		}
		texts[n.StorePath.Hash.String()+".narinfo"] = change.Data
	}
	return texts
}

func TestDropFilesUsage(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	p.imports(t, filepath.Join(testdata, "published-multi"))
	misuse(t, p.args("drop-files", "--compression=gzip"), "--tag", "--all")
	misuse(t, p.args("drop-files", "--compression=gzip", "--all", greet), "--all")
	misuse(t, p.args("drop-files", "--compression=gzp", "--all"), "gzp")
	misuse(t, p.args("drop-files", "--all"), "--compression")
	misuse(t, []string{"drop-files", "--database=" + p.database, "--compression=gzip", "--all"}, "--storage")
	before := p.dump(t)
	// Another directory, or one that isn't mounted.
	fail(t, []string{"drop-files", "--database=" + p.database, "--storage=" + t.TempDir(), "--compression=gzip", "--all"}, "nothing was dropped")
	r := runProgram(t, p.args("drop-files", "--compression=gzip", greet, deepTree, "0000000000000000000000000000000a")...)
	if r.status != 1 || !strings.Contains(r.err, "0000000000000000000000000000000a") || !strings.HasPrefix(r.out, "2 items lost") {
		t.Errorf("%+v", r)
	}
	if before == p.dump(t) {
		t.Error("nothing has changed")
	}
}

func TestDropFiles(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	dir, texts := gzipFarm(t)
	p.imports(t, dir)
	gzip := len(p.nars(t, "gzip"))
	succeed(t, p.args("check", "--verify")...)
	before := p.dump(t)
	if out := succeed(t, p.args("drop-files", "--compression=gzip", "--all", "--dry-run")...); !strings.HasPrefix(out, "7 items would lose files in compression gzip, ") ||
		!strings.Contains(out, "\n1 item keeps them") {
		t.Errorf("dry run: %s", out)
	}
	if p.dump(t) != before {
		t.Error("the dry run has changed something")
	}
	s := p.serve(t, "--ttl=2d")
	for name := range texts { // into the server's memory
		get(t, s.addresses[0], "/"+name)
	}
	if out := succeed(t, p.args("drop-files", "--compression=gzip", "--all")...); !strings.HasPrefix(out, "7 items lost files in compression gzip, ") || !strings.Contains(out, "freed") {
		t.Errorf("drop-files: %s", out)
	}
	until(t, "the server announces them no more", func() bool {
		return !strings.Contains(get(t, s.addresses[0], "/"+narinfoName(deepTree)).body, "gzip")
	})
	droppedGzip(t, s.addresses[0], texts, 200)
	for name, text := range recentTexts(t, s.addresses[0]) {
		if want := withoutGzip(t, name, texts[name]); text != want {
			t.Errorf("%s in the recent changes: %s", name, text)
		}
	}
	if out := succeed(t, p.args("drop-files", "--compression=gzip", "--all")...); !strings.Contains(out, "0 items lost") || !strings.Contains(out, "7 items lost them before") {
		t.Errorf("again: %s", out)
	}
	succeed(t, p.args("check", "--verify")...)
	s.stop(t, os.Interrupt)

	s = p.serve(t, "--ttl=2d")
	droppedGzip(t, s.addresses[0], texts, 200)
	if len(p.nars(t, "gzip")) != gzip {
		t.Error("files were deleted during the grace")
	}
	p.endGraceOfDropped(t)
	until(t, "the files are deleted", func() bool { return len(p.nars(t, "gzip")) == 1 })
	until(t, "requests for them get 404", func() bool {
		return get(t, s.addresses[0], "/nar/gzip/"+deepTree).StatusCode == 404
	})
	droppedGzip(t, s.addresses[0], texts, 404)
	if out := succeed(t, p.args("check", "--verify", "--repair")...); strings.Contains(out, "gzip") {
		t.Errorf("check: %s", out)
	}
	// Static copies.
	copied := filepath.Join(t.TempDir(), "copy")
	succeed(t, p.args("export", copied)...)
	for name, text := range texts {
		if got := read(t, copied, name); got != withoutGzip(t, name, text) {
			t.Errorf("%s in the static copy: %s", name, got)
		}
	}
	if files, err := filepath.Glob(filepath.Join(copied, "nar/gzip/*")); err != nil || len(files) != 1 {
		t.Errorf("%q, %v", files, err)
	}
	// Dumps.
	p.makeDump(t)
	dump, err := original.Open(t.Context(), p.dumpFile())
	if err != nil {
		t.Fatal(err)
	}
	defer dump.Close()
	count := 0
	for item, err := range dump.Items(t.Context(), 0) {
		if err != nil {
			t.Fatal(err)
		}
		n, err := narinfo.Parse(item.Text)
		if err != nil {
			t.Fatal(err)
		}
		name := n.StorePath.Hash.String() + ".narinfo"
		if want := withoutGzip(t, name, texts[name]); string(item.Text) != want {
			t.Errorf("%s in the dump: %s", name, item.Text)
		}
		count++
	}
	if count != len(texts) {
		t.Errorf("the dump has %d items", count)
	}
	// An import with the files undoes it.
	p.imports(t, filepath.Join(dir, narinfoName(deepTree)))
	until(t, "it is announced again", func() bool {
		return get(t, s.addresses[0], "/"+narinfoName(deepTree)).body == texts[narinfoName(deepTree)]
	})
	if got := get(t, s.addresses[0], "/nar/gzip/"+deepTree); got.StatusCode != 200 {
		t.Errorf("its nar: %s", got.Status)
	}
	succeed(t, p.args("check", "--verify")...)
}

// TestDropFilesUndone: an import during the grace.
func TestDropFilesUndone(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	dir, texts := gzipFarm(t)
	p.imports(t, dir)
	before := p.nars(t, "gzip")
	succeed(t, p.args("drop-files", "--compression=gzip", "--all")...)
	s := p.serve(t)
	p.imports(t, dir)
	p.endGraceOfDropped(t)
	for name, text := range texts {
		until(t, "it is announced again", func() bool { return get(t, s.addresses[0], "/"+name).body == text })
	}
	s.stop(t, os.Interrupt)
	if after := p.nars(t, "gzip"); !slices.Equal(before, after) {
		t.Errorf("%q, before %q", after, before)
	}
	succeed(t, p.args("check", "--verify")...)
}

// TestDropFilesUndo: a slip is undone without the imported files. What is deleted stays dropped.
func TestDropFilesUndo(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	dir, texts := gzipFarm(t)
	p.imports(t, dir)
	drop := p.args("drop-files", "--compression=gzip", "--all")
	undo := append(drop, "--undo")
	succeed(t, drop...)
	before := p.dump(t)
	if out := succeed(t, append(undo, "--dry-run")...); !strings.HasPrefix(out, "7 narinfos would name files in compression gzip again, ") || p.dump(t) != before {
		t.Errorf("dry run: %s", out)
	}
	if out := succeed(t, undo...); !strings.HasPrefix(out, "7 narinfos name files in compression gzip again, ") {
		t.Errorf("undo: %s", out)
	}
	if out := succeed(t, undo...); !strings.HasPrefix(out, "0 narinfos ") {
		t.Errorf("again: %s", out)
	}
	p.endGraceOfDropped(t)
	s := p.serve(t)
	for name, text := range texts {
		if got := get(t, s.addresses[0], "/"+name); got.body != text {
			t.Errorf("%s: %s", name, got.body)
		}
	}
	succeed(t, drop...)
	p.endGraceOfDropped(t)
	until(t, "the files are deleted", func() bool { return len(p.nars(t, "gzip")) == 1 })
	if out := succeed(t, undo...); !strings.HasPrefix(out, "0 narinfos ") {
		t.Errorf("undo after the grace: %s", out)
	}
	droppedGzip(t, s.addresses[0], texts, 404)
	succeed(t, p.args("check", "--verify")...)
}

// TestDropFilesUnverified: nobody knows whether the nars are right that items keep.
func TestDropFilesUnverified(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	dir, _ := gzipFarm(t)
	succeed(t, p.args("import", "--no-verify", dir)...)
	drop := p.args("drop-files", "--compression=gzip", "--all")
	const warning = "\n7 of them have nars that were never verified; next: nar-herder check --verify\n"
	for _, options := range [][]string{{"--dry-run"}, {}} {
		if out := succeed(t, append(drop, options...)...); !strings.Contains(out, warning) {
			t.Errorf("%s: %s", options, out)
		}
	}
	succeed(t, p.args("check", "--verify")...)
	if out := succeed(t, p.args("drop-files", "--compression=zstd", "--all", "--dry-run")...); strings.Contains(out, "verified") {
		t.Errorf("verified: %s", out)
	}
}

// TestDropFilesAlone: the other files vanish during the grace.
func TestDropFilesAlone(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	dir, texts := gzipFarm(t)
	p.imports(t, dir)
	succeed(t, p.args("drop-files", "--compression=gzip", "--all")...)
	succeed(t, p.args("drop-files", "--compression=zstd", "--all")...)
	if err := os.Remove(filepath.Join(p.storage, "nar/lzip", deepTree)); err != nil {
		t.Fatal(err)
	}
	p.endGraceOfDropped(t)
	s := p.serve(t)
	until(t, "the others are deleted", func() bool { return len(p.nars(t, "gzip")) == 2 && len(p.nars(t, "zstd")) == 1 })
	until(t, "it is announced again", func() bool {
		return get(t, s.addresses[0], "/"+narinfoName(deepTree)).body == texts[narinfoName(deepTree)]
	})
	until(t, "the log says so", func() bool { return strings.Contains(s.err.String(), "announced again") })
	// Dropping it again is refused for lack of another file.
	if out := succeed(t, p.args("drop-files", "--compression=zstd", deepTree)...); !strings.HasPrefix(out, "1 item lost") {
		t.Errorf("gzip is left: %s", out)
	}
	if out := succeed(t, p.args("drop-files", "--compression=gzip", deepTree)...); !strings.HasPrefix(out, "0 items lost") || !strings.Contains(out, "1 item keeps") {
		t.Errorf("nothing is left: %s", out)
	}
}

// TestDropFilesKilled kills the command and the server while files are dropped and deleted.
func TestDropFilesKilled(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	const count = 300
	dir := t.TempDir()
	for _, kind := range []string{"gzip", "lzip"} {
		if err := os.MkdirAll(filepath.Join(dir, "nar", kind), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	text := unsigned(read(t, testdata, "published-multi", narinfoName(empty)))
	for i := range count {
		name := fmt.Sprintf("%032d-empty-file", i)
		for _, kind := range []string{"gzip", "lzip"} {
			if err := os.WriteFile(filepath.Join(dir, "nar", kind, name), []byte(read(t, testdata, "published-multi/nar", kind, empty)), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		n, err := narinfo.Parse([]byte(strings.ReplaceAll(text, empty, name)))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name[:32]+".narinfo"), n.WithoutFiles(0b100), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	p.importsUnsigned(t, count, dir)
	for range kills(t) {
		drop := command(p.args("drop-files", "--compression=gzip", "--all")...)
		drop.start(t)
		time.Sleep(time.Duration(mathrand.Int64N(int64(200 * time.Millisecond))))
		_ = drop.Process.Kill() // it may have ended
		<-drop.ended
		p.endGraceOfDropped(t)
		s := p.serveProcess(t)
		time.Sleep(time.Duration(mathrand.Int64N(int64(200 * time.Millisecond))))
		s.kill(t)
		succeed(t, p.args("check")...)
	}
	succeed(t, p.args("drop-files", "--compression=gzip", "--all")...)
	p.endGraceOfDropped(t)
	s := p.serveProcess(t)
	until(t, "all are deleted", func() bool { return len(p.nars(t, "gzip")) == 0 })
	s.stop(t, os.Interrupt)
	if out := succeed(t, p.args("check", "--verify")...); strings.Contains(out, "stranger") && !strings.Contains(out, "0 stranger") {
		t.Errorf("check: %s", out)
	}
	if lzip := len(p.nars(t, "lzip")); lzip != count {
		t.Errorf("%d lzip nars", lzip)
	}
}

// wantMirrored waits until a mirror has fetched everything that it lacks.
func wantMirrored(t testing.TB, mirror *server, stored int) {
	t.Helper()
	until(t, "all are stored", func() bool {
		return metricWith(t, mirror.addresses[0], "narherder_stored_nars") == float64(stored) &&
			metricWith(t, mirror.addresses[0], "narherder_mirror_nars_in_flight") == 0 && metricWith(t, mirror.addresses[0], "narherder_mirror_nars_missing") <= 0
	})
}

// TestDropFilesMirror: a mirror from before, and one from after a compression was dropped.
func TestDropFilesMirror(t *testing.T) {
	t.Parallel()
	p, old, late := newPlace(t), newPlace(t), newPlace(t)
	dir, texts := gzipFarm(t)
	p.imports(t, dir)
	p.makeDump(t)
	source := p.serve(t)
	url := "--mirror=http://" + source.addresses[0]
	oldMirror := old.serve(t, url)
	wantMirrored(t, oldMirror, 22)
	succeed(t, p.args("drop-files", "--compression=gzip", "--all")...)
	until(t, "the mirror follows", func() bool {
		return !strings.Contains(get(t, oldMirror.addresses[0], "/"+narinfoName(deepTree)).body, "gzip")
	})
	droppedGzip(t, oldMirror.addresses[0], texts, 200)
	p.endGraceOfDropped(t)
	until(t, "the files are deleted at the source", func() bool { return len(p.nars(t, "gzip")) == 1 })
	if len(old.nars(t, "gzip")) != 8 {
		t.Error("the mirror has deleted files during its grace")
	}
	old.endGraceOfDropped(t)
	// That of the signed block stays: the mirror doesn't know.
	until(t, "the files are deleted at the mirror", func() bool { return len(old.nars(t, "gzip")) == 2 })
	p.makeDump(t)
	lateMirror := late.serve(t, url)
	wantMirrored(t, lateMirror, 15)
	droppedGzip(t, lateMirror.addresses[0], texts, 404)
	for _, mirror := range []struct {
		place
		*server
	}{{old, oldMirror}, {late, lateMirror}} {
		if status := get(t, mirror.addresses[0], "/health"); strings.Contains(status.body, `"missing":1`) || status.StatusCode != 200 {
			t.Errorf("%s: %s", status.Status, status.body)
		}
		succeed(t, mirror.args("check", "--verify")...)
	}
	// A mirror that drops another compression, which it still gets from its source.
	succeed(t, late.args("drop-files", "--compression=zstd", deepTree)...)
	late.endGraceOfDropped(t)
	until(t, "the mirror deletes it", func() bool { return !slices.Contains(late.nars(t, "zstd"), deepTree) })
	for range 2 {
		if got := get(t, lateMirror.addresses[0], "/nar/zstd/"+deepTree); got.StatusCode != 200 {
			t.Errorf("a dropped nar from the source: %s", got.Status)
		}
		lateMirror.stop(t, os.Interrupt)
		lateMirror = late.serve(t, url)
		wantMirrored(t, lateMirror, 14)
	}
	if text := get(t, lateMirror.addresses[0], "/"+narinfoName(deepTree)).body; strings.Contains(text, "zstd") || late.nars(t, "zstd") == nil || slices.Contains(late.nars(t, "zstd"), deepTree) {
		t.Errorf("it is announced or stored again: %s", text)
	}
	// The source has it again. The earlier mirror can't know that it shouldn't stay dropped.
	p.imports(t, filepath.Join(dir, narinfoName(deepTree)))
	until(t, "the mirror has it, too", func() bool { return slices.Contains(late.nars(t, "gzip"), deepTree) })
	until(t, "the mirror announces it", func() bool {
		text, _, _ := strings.Cut(texts[narinfoName(deepTree)], "URL: nar/zstd/")
		return get(t, lateMirror.addresses[0], "/"+narinfoName(deepTree)).body == text
	})
	succeed(t, old.args("drop-files", "--undo", "--compression=gzip", deepTree)...)
	oldMirror.stop(t, os.Interrupt)
	old.serve(t, url)
	until(t, "the earlier mirror fetches it again", func() bool { return slices.Contains(old.nars(t, "gzip"), deepTree) })
}
