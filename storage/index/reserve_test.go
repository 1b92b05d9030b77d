package index

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"nar-herder/internal/disk"
	"nar-herder/internal/testfs"
)

// smallDisk returns an index with items on a small file system that is nearly empty.
func smallDisk(t testing.TB, count int) (x *Index, directory string) {
	t.Helper()
	directory = testfs.Small(t, 64<<20)
	x = openAt(t, filepath.Join(directory, "db"))
	fill(t, x, count)
	return x, directory
}

// fill writes items.
func fill(t testing.TB, x *Index, count int) {
	t.Helper()
	update(t, x, func(tx *Tx) error {
		for n := range count {
			if err := putIn(tx, x, testNarinfo(n, 1, []int{0, n}, 10), 1, nil); err != nil {
				return err
			}
		}
		return nil
	})
}

func wantReserve(t testing.TB, x *Index, want Reserve) {
	t.Helper()
	if got, err := x.Reserve(); got != want || err != nil {
		t.Errorf("the reserve is %d, %v; want %d", got, err, want)
	}
}

// TestReserve removes all items without a free byte on the file system, and prevents other
// writes from using the room that removals need.
func TestReserve(t *testing.T) {
	t.Parallel()
	const count = 300
	x, directory := smallDisk(t, count)
	wantReserve(t, x, NoReserve)
	// As on a smaller file system.
	write(t, filepath.Join(directory, "db.reserve"), make([]byte, 1<<20))
	for range 2 {
		if state, err := x.KeepReserve(); state != ReserveKept || err != nil {
			t.Fatalf("%d, %v", state, err)
		}
	}
	if info, err := os.Stat(filepath.Join(directory, "db.reserve")); err != nil || info.Size() != 4<<20 {
		t.Errorf("%v, %v; want 4 MiB", info, err)
	}
	free := testfs.Fill(t, directory)
	add := func(n int) error {
		return x.Update(t.Context(), func(tx *Tx) error { return putIn(tx, x, testNarinfo(n, 1, nil, 10), 1, nil) })
	}
	// Additions can't use it.
	for n := count; n < count+100; n++ {
		if err := add(n); !errors.Is(err, ErrFull) {
			t.Fatalf("%v, want ErrFull", err)
		}
	}
	wantReserve(t, x, ReserveKept)
	for n := range count - 10 {
		calls := 0
		err := x.Reclaim(t.Context(), func(tx *Tx) error {
			calls++
			return tx.Remove(testPath(n).Hash, testTime)
		})
		if err != nil {
			t.Fatalf("removal %d: %v", n, err)
		}
		if n == 0 && calls != 2 {
			t.Errorf("the first removal took %d calls: the file system was not full", calls)
		}
		if n%50 == 0 {
			if err := add(count); !errors.Is(err, ErrFull) {
				t.Fatalf("after removal %d: %v, want ErrFull", n, err)
			}
		}
	}
	wantReserve(t, x, ReserveUsed)
	wantTotals(t, x, Totals{10, 10, 100})
	wantSound(t, x)
	// When there is room, the reserve is created again first.
	free()
	if err := add(count); err != nil {
		t.Error(err)
	}
	wantReserve(t, x, ReserveKept)
}

// TestOpenFull opens an index without a free byte on the file system, when no other process
// has it open, and removes from it.
func TestOpenFull(t *testing.T) {
	t.Parallel()
	directory := testfs.Small(t, 8<<20)
	path := filepath.Join(directory, "db")
	x, err := Open(t.Context(), path, Options{})
	if err != nil {
		t.Fatal(err)
	}
	fill(t, x, 100)
	_, err = x.KeepReserve()
	if err := errors.Join(err, x.Close()); err != nil {
		t.Fatal(err)
	}
	testfs.Fill(t, directory)
	y := openAt(t, path)
	wantTotals(t, y, Totals{100, 100, 1000})
	for n := range 90 {
		if err := y.Reclaim(t.Context(), func(tx *Tx) error { return tx.Remove(testPath(n).Hash, testTime) }); err != nil {
			t.Fatal(err)
		}
	}
	wantReserve(t, y, ReserveUsed)
	wantTotals(t, y, Totals{10, 10, 100})
}

// TestNoReserve: an index without a reserve works as before.
func TestNoReserve(t *testing.T) {
	t.Parallel()
	x, directory := smallDisk(t, 100)
	free := testfs.Fill(t, directory)
	defer free()
	err := x.Reclaim(t.Context(), func(tx *Tx) error {
		for n := range 100 {
			if err := tx.Remove(testPath(n).Hash, testTime); err != nil {
				return err
			}
		}
		return nil
	})
	if !errors.Is(err, ErrFull) {
		t.Errorf("%v, want ErrFull", err)
	}
	wantReserve(t, x, NoReserve)
	if state, err := x.KeepReserve(); state != NoReserve || err != nil {
		t.Errorf("a reserve on a full file system: %d, %v", state, err)
	}
	if _, err := x.Text(t.Context(), testPath(0).Hash); errors.Is(err, ErrNotFound) {
		t.Error("the items are missing")
	}
}

// TestReserveLongLog fills the file system when the log has the maximum size for each kind
// of writer. A checkpoint still works, and all items can be removed.
func TestReserveLongLog(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name    string
		size    int64
		log     int64
		options Options
		hurry   bool
	}{
		{"normal", 64 << 20, checkpointBytes, Options{}, false},
		{"normal on a small file system", 24 << 20, checkpointBytes, Options{}, false},
		{"bulk", 256 << 20, bulkCheckpointBytes, Options{Bulk: true}, false},
		{"hurry", 256 << 20, bulkCheckpointBytes, Options{}, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			directory := testfs.Small(t, test.size)
			path := filepath.Join(directory, "db")
			x, err := Open(t.Context(), path, test.options)
			if err != nil {
				t.Fatal(err)
			}
			defer x.Close()
			if state, err := x.KeepReserve(); state != ReserveKept || err != nil {
				t.Fatalf("%d, %v", state, err)
			}
			if test.hurry {
				if err := x.SetBulk(t.Context(), true); err != nil {
					t.Fatal(err)
				}
			}
			// Just before the first checkpoint, the log has all rows.
			count := 0
			for ; ; count += 20 {
				log, err := os.Stat(path + "-wal")
				if err != nil {
					t.Fatal(err)
				}
				if log.Size() > x.maxLog(test.log)-400_000 {
					break
				}
				update(t, x, func(tx *Tx) error {
					for n := count; n < count+20; n++ {
						if err := putIn(tx, x, testNarinfo(n, 1, []int{0, n}, 10), 1, nil); err != nil {
							return err
						}
					}
					// Incompressible, like signatures.
					random := make([]byte, 60_000)
					_, _ = rand.Read(random)
					return tx.SetSetting(fmt.Sprint("random ", count), hex.EncodeToString(random))
				})
			}
			testfs.Fill(t, directory)
			for first := 0; first < count; first += 20 {
				err := x.Reclaim(t.Context(), func(tx *Tx) error {
					for n := range 20 {
						if err := tx.Remove(testPath(first+n).Hash, testTime); err != nil {
							return err
						}
					}
					return nil
				})
				if err != nil {
					t.Fatalf("removal %d of %d: %v", first, count, err)
				}
			}
			wantReserve(t, x, ReserveUsed)
			wantTotals(t, x, Totals{})
			wantSound(t, x)
		})
	}
}

// TestReserveReader: while a reader blocks checkpoints, additions fail if a checkpoint
// would need the reserve.
func TestReserveReader(t *testing.T) {
	t.Parallel()
	x, directory := smallDisk(t, 100)
	if state, err := x.KeepReserve(); state != ReserveKept || err != nil {
		t.Fatalf("%d, %v", state, err)
	}
	count := 0
	add := func() error {
		count++
		return x.Update(t.Context(), func(tx *Tx) error {
			return tx.SetSetting("long", strings.Repeat(fmt.Sprintf("%08d", count), 1<<17))
		})
	}
	room := func() (log, free int64) {
		info, err := os.Stat(filepath.Join(directory, "db-wal"))
		if err != nil {
			t.Fatal(err)
		}
		free, _, err = disk.Room(directory)
		if err != nil {
			t.Fatal(err)
		}
		return info.Size(), free
	}
	err := x.View(t.Context(), func(tx *Tx) error {
		if _, err := tx.Totals(); err != nil {
			return err
		}
		for range 64 {
			if err := add(); err != nil {
				return err
			}
		}
		return nil
	})
	log, free := room()
	if !errors.Is(err, ErrFull) || log < 20<<20 || free < log-2<<20 {
		t.Errorf("%v, want ErrFull; the log has %d bytes, and %d are free", err, log, free)
	}
	wantReserve(t, x, ReserveKept)
	// Without the reader, they succeed.
	if err := add(); err != nil {
		t.Error(err)
	}
	if log, _ := room(); log > 4<<20 {
		t.Errorf("the log has %d bytes", log)
	}
}

// TestReserveOnlyDatabase uses a file system with little besides the database, which keeps
// the room of removed rows. They are overwritten without a reserve.
func TestReserveOnlyDatabase(t *testing.T) {
	t.Parallel()
	x, directory := smallDisk(t, 100)
	if state, err := x.KeepReserve(); state != ReserveKept || err != nil {
		t.Fatalf("%d, %v", state, err)
	}
	set := func(write func(context.Context, func(*Tx) error) error, n, length int) error {
		return write(t.Context(), func(tx *Tx) error {
			return tx.SetSetting(fmt.Sprint("long ", n), strings.Repeat(fmt.Sprintf("%08d", n), length/8))
		})
	}
	count := 0
	for ; ; count++ {
		if err := set(x.Update, count, 200_000); errors.Is(err, ErrFull) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
	}
	testfs.Fill(t, directory)
	for n := 0; n < 20; n++ {
		if state, err := x.Reserve(); state != ReserveKept {
			break
		} else if err := errors.Join(err, set(x.Reclaim, 1_000+n, 100_000)); err != nil {
			t.Fatal(err)
		}
	}
	wantReserve(t, x, ReserveUsed)
	if err := set(x.Update, count, 8); !errors.Is(err, ErrFull) || !strings.Contains(err.Error(), "remove items until") {
		t.Errorf("%v, want ErrFull with the way out", err)
	}
	for n := range count {
		if err := set(x.Reclaim, n, 8); err != nil {
			t.Fatalf("removal %d of %d: %v", n, count, err)
		}
	}
	wantReserve(t, x, ReserveUsed)
	for n := range 100 {
		if err := set(x.Update, n, 100_000); err != nil {
			t.Fatalf("writing %d again: %v", n, err)
		}
	}
	// Until the free pages of the database are used. Then items can still be removed.
	for n := 0; ; n++ {
		if err := set(x.Update, 10_000+n, 200_000); errors.Is(err, ErrFull) {
			break
		} else if err != nil || n > 1000 {
			t.Fatal(n, err)
		}
	}
	for n := range 100 {
		if err := x.Reclaim(t.Context(), func(tx *Tx) error { return tx.Remove(testPath(n).Hash, testTime) }); err != nil {
			t.Fatalf("removal %d: %v", n, err)
		}
	}
	wantTotals(t, x, Totals{})
	wantSound(t, x)
}

// TestReserveSparse: a file system may report an allocation that it has not made.
func TestReserveSparse(t *testing.T) {
	t.Parallel()
	const size = 1 << 20
	name := filepath.Join(testfs.Small(t, 2*size), "reserve")
	sparse := func(fd int, _ uint32, _, size int64) error { return unix.Ftruncate(fd, size) }
	if err := makeReserve(name, 0, size, sparse); err != nil {
		t.Fatal(err)
	}
	var stat unix.Stat_t
	if err := unix.Stat(name, &stat); err != nil || stat.Size != size || stat.Blocks*512 < size {
		t.Errorf("%d bytes in %d blocks, %v", stat.Size, stat.Blocks, err)
	}
	if err := makeReserve(name, size, 3*size, sparse); !disk.IsFull(err) {
		t.Errorf("without room: %v", err)
	}
	if err := unix.Stat(name, &stat); err != nil || stat.Size != size || stat.Blocks*512 < size {
		t.Errorf("%d bytes in %d blocks, %v", stat.Size, stat.Blocks, err)
	}
}

// TestReserveOfAnother: an importer may write to the database but not to the reserve. The
// owner of the reserve creates it again.
func TestReserveOfAnother(t *testing.T) {
	t.Parallel()
	x, directory := smallDisk(t, 100)
	name := filepath.Join(directory, "db.reserve")
	write(t, name, nil)
	err := errors.Join(os.Chmod(name, 0o644), os.Chmod(directory, 0o755), os.Chmod(filepath.Dir(directory), 0o755))
	if err != nil {
		t.Fatal(err)
	}
	asNobody(t, func() {
		if file, err := os.OpenFile(name, os.O_WRONLY, 0); !errors.Is(err, fs.ErrPermission) {
			t.Errorf("the reserve can be written: %v", err)
			file.Close()
		}
		if err := x.Update(t.Context(), func(tx *Tx) error { return tx.SetSetting("a", "b") }); err != nil {
			t.Error(err)
		}
	})
	wantReserve(t, x, ReserveUsed)
	testfs.Fill(t, directory)
	asNobody(t, func() {
		if err := x.Update(t.Context(), func(tx *Tx) error { return tx.SetSetting("a", "c") }); !errors.Is(err, ErrFull) {
			t.Errorf("%v, want ErrFull", err)
		}
	})
}

// asNobody runs f as an unprivileged user.
func asNobody(t testing.TB, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // until the goroutine ends
		const nobody = 65534
		if _, err := unix.SetfsuidRetUid(nobody); err != nil {
			t.Error(err)
			return
		}
		f()
	}()
	<-done
}
