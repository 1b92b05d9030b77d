package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"nar-herder/internal/testfs"
	"nar-herder/storage/bytestore"
)

// freeBytes returns the free space of a file system for users without privileges.
func freeBytes(t testing.TB, dir string) int64 {
	t.Helper()
	var stat syscall.Statfs_t
	if err := syscall.Statfs(dir, &stat); err != nil {
		t.Fatal(err)
	}
	return int64(stat.Bavail) * stat.Bsize
}

// TestMinimumFreeSpace: imports that would leave less than the minimum free are refused,
// and nars are removed when something else fills the file system.
func TestMinimumFreeSpace(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	p.storage = testfs.Small(t, 8<<20)
	source := filepath.Join(p.dir, "source")
	texts := generate(t, source, 60) // about 4 MB
	const minimum = 6 << 20
	s := p.serve(t, "--log-level=INFO", fmt.Sprintf("--storage-minimum-free-space=%dB", minimum), "--ttl=1s", "--storage-check-interval=1s",
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
	if value := metric(t, s.addresses[0], "narherder_storage_minimum_free_bytes"); value != "6.291456e+06" {
		t.Errorf("the minimum is %s", value)
	}
	until(t, "the minimum is free again", func() bool { return freeBytes(t, p.storage) >= minimum })
	until(t, "there are no more warnings", func() bool { return !strings.Contains(get(t, s.addresses[0], "/health").body, "warnings") })
	// No more are removed than necessary.
	if after := served(); after >= before || after < before-25 {
		t.Errorf("%d of %d nars are left", after, before)
	}
	if free := freeBytes(t, p.storage); free > minimum+200<<10 {
		t.Errorf("%d bytes are free, the minimum is %d", free, minimum)
	}
	s.stop(t, syscall.SIGTERM)
	// Without a minimum, all nars are imported.
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	p.serve(t, "--log-level=INFO", "--storage-minimum-free-space=none")
	p.imports(t, source)
}

// TestFullDatabase fills the file system of the database: nothing is added, but the remove
// command and the server's removal still work, also after a restart.
func TestFullDatabase(t *testing.T) {
	t.Parallel()
	const count = 60
	p := newPlace(t)
	disk := testfs.Small(t, 8<<20)
	p.database = filepath.Join(disk, "index.db")
	p.storage = testfs.Small(t, 16<<20)
	source := filepath.Join(p.dir, "source")
	texts := generate(t, source, count)
	p.imports(t, source)
	minimum := freeBytes(t, p.storage) - 100<<10
	options := []string{"--log-level=INFO", fmt.Sprintf("--storage-minimum-free-space=%dB", minimum), "--ttl=1s", "--storage-check-interval=1s",
		"--storage-nar-removal-criteria=unpinned"}
	s := p.serveProcess(t, options...)
	until(t, "the reserve is kept", func() bool { return usageOf(t, p.database+".reserve") > 0 })
	testfs.Fill(t, disk)
	health := func(want string) {
		t.Helper()
		until(t, "the health says "+want, func() bool {
			got := get(t, s.addresses[0], "/health")
			if got.StatusCode != 200 || strings.Contains(got.body, disk) {
				t.Errorf("%s %s", got.Status, got.body)
			}
			return strings.Contains(got.body, want)
		})
	}
	health("nearly full")
	if free := metric(t, s.addresses[0], "narherder_database_free_bytes"); free != "0" {
		t.Errorf("%s bytes are free", free)
	}
	item := func(n int) string { return fmt.Sprintf("/gnu/store/%032d-item", n) }
	// More than the log has room for.
	for n := range 15 {
		if out := succeed(t, p.args("remove", "--now", item(n))...); !strings.Contains(out, "1 item removed") {
			t.Errorf("%s", out)
		}
	}
	health("only removals are possible")
	got := runProgram(t, p.args("import", "--keep", source)...)
	if got.status == 0 || !strings.Contains(got.err, "no space left for the database") {
		t.Errorf("import: %+v", got)
	}
	// Removal by the server.
	served := func() (count int) {
		for target := range texts {
			if get(t, s.addresses[0], target).StatusCode == 200 {
				count++
			}
		}
		return count
	}
	removes := func() {
		t.Helper()
		before := served()
		lacking := freeBytes(t, p.storage) - minimum + 200<<10
		ballast, err := os.CreateTemp(p.storage, "ballast")
		if err != nil {
			t.Fatal(err)
		}
		defer ballast.Close()
		if _, err := ballast.Write(make([]byte, lacking)); err != nil {
			t.Fatal(err)
		}
		until(t, "the minimum is free again", func() bool { return freeBytes(t, p.storage) >= minimum })
		if after := served(); after >= before || after == 0 {
			t.Errorf("%d of %d items are left", after, before)
		}
	}
	removes()
	s.kill(t)
	// At once: for minutes, space that is freed while the ballast is written would
	// count as free.
	succeed(t, p.args("remove", "--now", item(40))...)
	s = p.serve(t, options...)
	removes()
	succeed(t, p.args("remove", item(count-1))...)
	s.stop(t, syscall.SIGTERM)
	succeed(t, p.args("remove", "--now", item(count-2))...)
}

// usageOf returns the disk usage of a file, 0 if it is missing.
func usageOf(t testing.TB, name string) int64 {
	t.Helper()
	var stat syscall.Stat_t
	if err := syscall.Stat(name, &stat); errors.Is(err, fs.ErrNotExist) {
		return 0
	} else if err != nil {
		t.Fatal(err)
	}
	return stat.Blocks * 512
}

// TestFullDisk: database and storage are on one full file system, on which the server makes
// room by itself.
func TestFullDisk(t *testing.T) {
	t.Parallel()
	disk := testfs.Small(t, 16<<20)
	p := newPlace(t)
	p.database, p.storage = filepath.Join(disk, "index.db"), filepath.Join(disk, "storage")
	if err := os.Mkdir(p.storage, 0o755); err != nil {
		t.Fatal(err)
	}
	source := filepath.Join(p.dir, "source")
	texts := generate(t, source, 60)
	p.imports(t, source)
	const minimum = 1 << 20
	s := p.serve(t, "--log-level=INFO", fmt.Sprintf("--storage-minimum-free-space=%dB", minimum), "--ttl=1s", "--storage-check-interval=1s",
		"--storage-nar-removal-criteria=unpinned")
	until(t, "the reserve is kept", func() bool { return usageOf(t, p.database+".reserve") > 0 })
	until(t, "the storage has its name", func() bool { _, err := os.Stat(filepath.Join(p.storage, bytestore.IdentityName)); return err == nil })
	testfs.Fill(t, disk)
	// While removals make the log of the database grow, bytes seem to become free late, and for ten
	// minutes nothing more is removed for them.
	until(t, "nars are deleted, and the minimum is free or in the log of the database", func() bool {
		nars, err := filepath.Glob(filepath.Join(p.storage, "nar/*/*"))
		if err != nil {
			t.Fatal(err)
		}
		return len(nars) < len(texts) && freeBytes(t, disk)+usageOf(t, p.database+"-wal") >= minimum
	})
	count := 0
	for target := range texts {
		if get(t, s.addresses[0], target).StatusCode == 200 {
			count++
		}
	}
	if count == 0 || count == len(texts) {
		t.Errorf("%d items are left", count)
	}
	s.stop(t, syscall.SIGTERM)
}
