package dump

import (
	"bufio"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/klauspost/compress/zstd"

	"nar-herder/internal/disk"
	"nar-herder/internal/rowsum"
	"nar-herder/internal/stamp"
	"nar-herder/mirror/original"
	"nar-herder/narinfo"
	"nar-herder/storage/index"
)

// writeDatabase writes the database with the original's schema from the copy.
func writeDatabase(ctx context.Context, path, copied string, g Generation, content index.Copied) (err error) {
	snapshot, err := index.OpenSnapshot(ctx, copied)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, snapshot.Close()) }()
	w, err := original.Create(ctx, path)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, w.Abort())
		}
	}()
	// Removing the last link frees gigabytes, which takes too long while the program stops:
	// then this link stays for the next run to remove.
	held := path + "-held"
	if os.Link(path, held) == nil {
		defer func() {
			if ctx.Err() == nil {
				err = errors.Join(err, os.Remove(held))
			}
		}()
	}
	sum, err := addItems(ctx, w, snapshot, g.CreatedAt)
	if err != nil {
		return err
	}
	if err := addChanges(w, snapshot, content.Changes, g.CreatedAt); err != nil {
		return err
	}
	for _, info := range []struct{ key, value string }{
		{"instance", g.Instance},
		{"last_change", strconv.FormatInt(g.LastChange, 10)},
		{"created_at", g.CreatedAt.Format(time.RFC3339)},
		{"items", strconv.FormatInt(g.Items, 10)},
		{original.SumKey, sum},
		{original.DamagedKey, damagedHashes(content.Damaged)},
	} {
		if info.value == "" {
			continue
		}
		if err := w.SetInfo(info.key, info.value); err != nil {
			return err
		}
	}
	return w.Finish(ctx)
}

// damagedHashes is the value of [original.DamagedKey].
func damagedHashes(all []*index.Damage) string {
	var hashes []string
	for _, damage := range all {
		if damage.Hash == (narinfo.PathHash{}) {
			return original.ManyDamaged
		}
		hashes = append(hashes, damage.Hash.String())
	}
	return strings.Join(hashes, " ")
}

// itemsAhead is how many items are read ahead, in each of two lots.
const itemsAhead = 256

// addItems writes all items, as of the time of the dump, and returns their sum.
func addItems(ctx context.Context, w *original.Writer, snapshot *index.Snapshot, now time.Time) (string, error) {
	ctx, stop := context.WithCancel(ctx)
	lots := make(chan []original.Item, 1)
	read := make(chan error, 1)
	go func() {
		read <- readItems(ctx, snapshot, lots, now)
		close(lots)
	}()
	var err error
	var sum rowsum.Sum
	for lot := range lots {
		for _, item := range lot {
			if err == nil {
				original.AddTo(&sum, item)
				err = w.Add(item)
			}
		}
		if err != nil {
			stop()
		}
	}
	readErr := <-read
	stop()
	if err != nil {
		return "", err
	}
	return sum.String(), readErr
}

func readItems(ctx context.Context, snapshot *index.Snapshot, lots chan<- []original.Item, now time.Time) error {
	var lot []original.Item
	pass := func() error {
		select {
		case lots <- lot:
			lot = nil
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	for item, err := range snapshot.Items(ctx) {
		if err != nil {
			return err
		}
		if lot == nil {
			lot = make([]original.Item, 0, itemsAhead)
		}
		if lot = append(lot, original.Item{Text: item.Text, AddedAt: stamp.Past(item.AddedAt, now)}); len(lot) == itemsAhead {
			if err := pass(); err != nil {
				return err
			}
		}
	}
	return pass()
}

// addChanges writes the newest changes. A mirror resumes from the newest of their times, none
// of which is later than the dump's. If there are none, it writes the newest item as one.
func addChanges(w *original.Writer, snapshot *index.Snapshot, changes []index.MirrorChange, now time.Time) error {
	for _, change := range changes {
		written := original.Change{At: stamp.Past(change.At, now).Truncate(time.Second), Removal: change.Kind == index.Removed, Data: string(change.Text)}
		if written.Removal {
			written.Data = change.StorePath
		}
		if err := w.AddChange(written); err != nil {
			return err
		}
	}
	if len(changes) > 0 {
		return nil
	}
	item, err := snapshot.NewestItem()
	if err != nil || item == nil {
		return err
	}
	return w.AddChange(original.Change{At: stamp.Past(item.AddedAt, now), Data: string(item.Text)})
}

// checkDatabase checks the written database, because mirrors trust its digest.
func checkDatabase(ctx context.Context, path string, items int64) (err error) {
	if items == 0 {
		return nil // Check refuses an empty database
	}
	database, err := original.Open(ctx, path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, database.Close()) }()
	if err := database.Check(ctx); err != nil {
		return err
	}
	count, err := database.Count(ctx)
	if err == nil && count != items {
		err = fmt.Errorf("%s has %d narinfos, and the index has %d", path, count, items)
	}
	return err
}

const (
	// zstdWindow is the memory that a reader needs, in bytes. The command zstd and
	// browsers accept no more by default.
	zstdWindow = 8 << 20
	// readStep is how much is read between two checks of the context.
	readStep = 1 << 20
)

// compress compresses a file with zstd and syncs the result. It returns the digests of both.
func compress(ctx context.Context, path, compressed string) (plain, packed File, err error) {
	in, err := os.Open(path)
	if err != nil {
		return File{}, File{}, err
	}
	defer in.Close()
	out, err := disk.OpenFile(compressed, os.O_WRONLY|os.O_EXCL, 0o644, disk.GroupWrites)
	if err != nil {
		return File{}, File{}, err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	packedSum := newSummed(out)
	buffered := bufio.NewWriterSize(packedSum, readStep)
	encoder, err := zstd.NewWriter(buffered, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithWindowSize(zstdWindow), zstd.WithEncoderConcurrency(1))
	if err != nil {
		return File{}, File{}, err
	}
	plainSum := newSummed(encoder)
	err = copyAll(ctx, plainSum, in)
	err = errors.Join(err, encoder.Close())
	if err == nil {
		err = buffered.Flush()
	}
	if err == nil {
		err = out.Sync()
	}
	return plainSum.file(), packedSum.file(), err
}

// both runs two functions concurrently. If one fails, it cancels the other.
func both(ctx context.Context, one, other func(context.Context) error) error {
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	var group sync.WaitGroup
	for _, f := range []func(context.Context) error{one, other} {
		group.Go(func() {
			if err := f(ctx); err != nil {
				stop(err)
			}
		})
	}
	group.Wait()
	return context.Cause(ctx)
}

// digest hashes a file.
func digest(ctx context.Context, path string) (File, error) {
	in, err := os.Open(path)
	if err != nil {
		return File{}, err
	}
	defer in.Close()
	sum := newSummed(io.Discard)
	err = copyAll(ctx, sum, in)
	return sum.file(), err
}

func copyAll(ctx context.Context, w io.Writer, r io.Reader) error {
	step := make([]byte, readStep)
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := r.Read(step)
		if n > 0 {
			if _, err := w.Write(step[:n]); err != nil {
				return err
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// summed is a writer that counts and hashes the bytes.
type summed struct {
	w    io.Writer
	sum  hash.Hash
	size int64
}

func newSummed(w io.Writer) *summed { return &summed{w: w, sum: sha256.New()} }

func (s *summed) Write(p []byte) (int, error) {
	n, err := s.w.Write(p)
	s.sum.Write(p[:n])
	s.size += int64(n)
	return n, err
}

func (s *summed) file() File { return File{Size: s.size, SHA256: Digest(s.sum.Sum(nil))} }
