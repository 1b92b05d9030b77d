package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"nar-herder/internal/testfs"
)

// freeBytes are those of a file system for users without privileges.
func freeBytes(t testing.TB, dir string) int64 {
	t.Helper()
	var stat syscall.Statfs_t
	if err := syscall.Statfs(dir, &stat); err != nil {
		t.Fatal(err)
	}
	return int64(stat.Bavail) * stat.Bsize
}

// TestMinimumFreeSpace has imports of another process refused that would leave less
// than the minimum free, and nars removed when something else takes the room.
func TestMinimumFreeSpace(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	p.storage = testfs.Small(t, 8<<20)
	source := filepath.Join(p.dir, "source")
	texts := generate(t, source, 60) // some 4 MB
	const minimum = 6 << 20
	s := p.serve(t, "--log-level=INFO", fmt.Sprintf("--storage-minimum-free-space=%d", minimum), "--ttl=1s", "--storage-check-interval=1s",
		"--storage-nar-removal-criteria=unpinned")
	got := runProgram(t, p.args("import", "--keep", source)...)
	for _, text := range []string{p.storage, strconv.Itoa(minimum), "--storage-minimum-free-space"} {
		if got.status != 1 || !strings.Contains(got.err, text) {
			t.Errorf("status %d, without %q: %s", got.status, text, got.err)
		}
	}
	if free := freeBytes(t, p.storage); free < minimum || free > minimum+1<<20 {
		t.Errorf("%d bytes are free, the minimum is %d", free, minimum)
	}
	if got := get(t, s.addresses[0], "/health"); got.StatusCode != 200 || strings.Contains(got.body, "warnings") {
		t.Errorf("%s %s", got.Status, got.body)
	}
	served := func() (count int) {
		for target := range texts {
			if get(t, s.addresses[0], target).StatusCode == 200 {
				count++
			}
		}
		return count
	}
	before := served()
	if before == 0 || before == len(texts) {
		t.Fatalf("%d of %d were imported", before, len(texts))
	}
	ballast := filepath.Join(p.storage, "ballast")
	if err := os.WriteFile(ballast, make([]byte, 400<<10), 0o644); err != nil {
		t.Fatal(err)
	}
	if got := get(t, s.addresses[0], "/health"); got.StatusCode != 200 || !strings.Contains(got.body, "file system of the storage") || strings.Contains(got.body, p.storage) {
		t.Errorf("%s %s", got.Status, got.body)
	}
	if value := metric(t, s.addresses[0], "narherder_storage_minimum_free_bytes"); value != "6.291456e+06" {
		t.Errorf("the minimum is %s", value)
	}
	until(t, "the minimum is free again", func() bool { return freeBytes(t, p.storage) >= minimum })
	until(t, "there are no more warnings", func() bool { return !strings.Contains(get(t, s.addresses[0], "/health").body, "warnings") })
	// And not more than had to.
	if after := served(); after >= before || after < before-25 {
		t.Errorf("%d of %d are left", after, before)
	}
	if free := freeBytes(t, p.storage); free > minimum+200<<10 {
		t.Errorf("%d bytes are free, the minimum is %d", free, minimum)
	}
	s.stop(t, syscall.SIGTERM)
	// Without a minimum, all comes.
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	p.serve(t, "--log-level=INFO", "--storage-minimum-free-space=none")
	p.imports(t, source)
}
