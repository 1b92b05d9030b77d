package cached

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"runtime/debug"
	"time"

	"nar-herder/compression"
	"nar-herder/internal/disk"
	"nar-herder/narinfo"
	"nar-herder/storage"
	"nar-herder/storage/bytestore"
	"nar-herder/storage/index"
	"nar-herder/storage/narcheck"
)

// jobPrefix is the prefix of temporary files, which are in the directory of their type, so that
// publishing one is a link.
const jobPrefix = ".nar-herder-job-"

// errNothingToDo is returned if the item needs no file of the type.
var errNothingToDo = errors.New("nothing to do")

// work makes queued files until the context ends.
func (c *Cache) work(ctx context.Context) {
	for {
		var t task
		select {
		case t = <-c.queue.tasks:
		case <-ctx.Done():
			return
		}
		select {
		case <-t.kind.scanned:
		case <-ctx.Done():
			return
		}
		c.do(ctx, t)
	}
}

// do makes one file, and logs the outcome.
func (c *Cache) do(ctx context.Context, t task) {
	begun := time.Now()
	defer c.queue.begin(t, begun)()
	t.kind.metrics.running.Inc()
	defer t.kind.metrics.running.Dec()
	made, err := c.make(ctx, t)
	switch {
	case ctx.Err() != nil:
		// The server stops. The next start queues the task again.
	case errors.Is(err, errNothingToDo):
		c.queue.resolve(t)
	case err != nil:
		t.kind.metrics.failed.Inc()
		again := c.queue.done(t, true)
		if c.unmade.IsDue(t.kind.Name+err.Error(), time.Now()) {
			c.log.Warn("can't make a cached nar: will retry", "type", t.kind.Name, "item", t.hash.String(), "error", err, "retry_in", time.Until(again).Round(time.Second))
		}
		if errors.Is(err, errNoRoom) {
			if err := c.makeRoom(ctx, t.kind, made); err != nil {
				c.unmade.Log(c.log, slog.LevelWarn, time.Now(), "can't make room for cached nars", "type", t.kind.Name, "error", err)
			}
		}
	default:
		t.kind.metrics.made.Inc()
		t.kind.metrics.seconds.Add(time.Since(begun).Seconds())
		c.queue.done(t, false)
		c.log.Info("made a cached nar", "type", t.kind.Name, "item", t.hash.String(), "bytes", made, "duration", time.Since(begun).Round(time.Millisecond))
	}
}

// make makes the file of a task and its row. It returns the file's length, or after an error
// the minimum space that it needs.
func (c *Cache) make(ctx context.Context, t task) (size int64, err error) {
	defer func() {
		// Codecs read untrusted input.
		if fault := recover(); fault != nil {
			err = fmt.Errorf("panic; please report it: %v\n%s", fault, debug.Stack())
		}
	}()
	row, err := c.index.Item(ctx, t.hash)
	if errors.Is(err, storage.ErrNotFound) {
		return 0, errNothingToDo // removed meanwhile
	} else if err != nil {
		return 0, err
	}
	item, err := storage.NewItem(row)
	if err != nil {
		return 0, err
	}
	if names(item.Narinfo, t.kind.Name) || !item.Narinfo.CanAppend() {
		return 0, errNothingToDo
	}
	if again, err := c.announceAgain(ctx, t, item); again || err != nil {
		return 0, err
	}
	source, how, err := c.options.Source.Open(ctx, item)
	if err != nil {
		return 0, fmt.Errorf("open the nar: %w", err)
	}
	defer source.Close()

	temporary, err := os.CreateTemp(t.kind.Directory, jobPrefix)
	if err != nil {
		return 0, err
	}
	defer os.Remove(temporary.Name())
	defer temporary.Close()
	room := &reservation{space: &t.kind.space}
	defer room.drop()
	out := &bounded{ctx: ctx, w: temporary, room: room}
	if err := Transcode(ctx, item.Narinfo, source, how, t.kind.Spec, out, temporary, c.options.Decoders); err != nil {
		return out.size, err
	}
	// CreateTemp makes files that other users can't read.
	if err := errors.Join(temporary.Chmod(0o644), temporary.Close()); err != nil {
		return out.size, err
	}
	disk.Inherit(temporary.Name(), disk.GroupReads)
	return out.size, c.publish(ctx, t, item, temporary.Name(), out.size, room)
}

// announceAgain restores a withdrawn file that is not deleted yet.
func (c *Cache) announceAgain(ctx context.Context, t task, item *storage.Item) (bool, error) {
	file, recorded, err := c.file(ctx, t.kind, item.Hash)
	if err != nil || !recorded {
		return false, err
	}
	if file.WithdrawnAt.IsZero() {
		return false, errNothingToDo
	}
	t.kind.changing.Lock()
	defer t.kind.changing.Unlock()
	info, err := t.kind.bytes.Stat(ctx, item.Narinfo.StorePath.BaseName())
	if errors.Is(err, fs.ErrNotExist) || err == nil && info.Size != file.Size {
		return false, nil // deleted meanwhile
	} else if err != nil {
		return false, err
	}
	file.LastUsed = time.Now()
	return true, c.record(ctx, item, file)
}

// record writes the file's row, unless the item was removed or replaced.
func (c *Cache) record(ctx context.Context, item *storage.Item, file index.CachedFile) error {
	err := c.index.Update(ctx, func(tx *index.Tx) error {
		row, err := tx.Item(item.Hash)
		if err != nil {
			return err
		}
		now, err := storage.NewItem(row)
		if err != nil {
			return err
		}
		if now.Narinfo.NarHash != item.Narinfo.NarHash {
			return fmt.Errorf("the item was replaced meanwhile: %w", storage.ErrNotFound)
		}
		return tx.PutCached(file)
	})
	if err == nil {
		c.changed(item.Hash)
	}
	return err
}

// publish renames the finished file, and then writes its row.
func (c *Cache) publish(ctx context.Context, t task, item *storage.Item, temporary string, size int64, room *reservation) error {
	c.finishing.RLock()
	defer c.finishing.RUnlock()
	if err := ctx.Err(); err != nil {
		return err
	}
	k, path := t.kind, item.Narinfo.StorePath
	k.changing.Lock()
	defer k.changing.Unlock()
	file, err := os.Open(temporary)
	if err != nil {
		return err
	}
	defer file.Close()
	staged, err := k.bytes.StageFile(ctx, path.BaseName(), file, size)
	if errors.Is(err, bytestore.ErrCantShare) {
		// The file system has no hard links.
		staged, err = k.bytes.Stage(ctx, path.BaseName(), file, size)
	}
	if err != nil {
		return err
	}
	defer staged.Abort()
	if err := k.removeFile(ctx, path.BaseName()); err != nil { // an unreferenced file
		return err
	}
	if err := errors.Join(staged.Commit(ctx), k.bytes.Sync(ctx)); err != nil {
		return err
	}
	info, err := k.bytes.Stat(ctx, path.BaseName())
	if err != nil {
		return err
	}
	room.keep(info.Usage)
	if k.space.max >= 0 && k.space.usage() > k.space.max {
		err = errNoRoom // the file takes more space than was reserved
	} else {
		err = c.record(ctx, item, index.CachedFile{Hash: item.Hash, Type: k.Name, Size: size, LastUsed: time.Now()})
	}
	if err != nil {
		err = errors.Join(err, k.removeFile(context.WithoutCancel(ctx), path.BaseName()))
	}
	return err
}

// Transcode reads a nar in the compression named by how, and compresses it by spec to out. Then
// it reads the output through written and decompresses it. It verifies both times that the nar
// has the hash and size of the narinfo.
func Transcode(ctx context.Context, n *narinfo.Narinfo, source io.Reader, how string, spec compression.Spec, out io.Writer, written io.ReadSeeker, decoders *compression.Budget) error {
	if err := compress(ctx, n, source, how, spec, out, decoders); err != nil {
		return err
	}
	if err := verify(ctx, n, written, spec.Name, decoders); err != nil {
		return fmt.Errorf("the compressed nar is wrong; please report it: %w", err)
	}
	return nil
}

// compress reads the nar, checks it, and writes it compressed.
func compress(ctx context.Context, n *narinfo.Narinfo, source io.Reader, how string, spec compression.Spec, out io.Writer, decoders *compression.Budget) error {
	reader, err := decoders.NewReader(ctx, how, source, n.NarSize)
	if err != nil {
		return fmt.Errorf("read the nar as %s: %w", how, err)
	}
	defer reader.Close()
	writer, err := compression.NewWriter(spec.Name, spec.Level, out)
	if err != nil {
		return err
	}
	check := narcheck.NewSum(ctx, n)
	_, err = io.CopyBuffer(onlyWriter{writer}, io.TeeReader(onlyReader{reader}, check), make([]byte, copyBuffer))
	if err == nil {
		err = check.Result()
	}
	if ctx.Err() != nil {
		return ctx.Err() // without Close, which may take long
	}
	return errors.Join(err, writer.Close())
}

// verify decompresses a file, and checks it.
func verify(ctx context.Context, n *narinfo.Narinfo, file io.ReadSeeker, kind string, decoders *compression.Budget) error {
	if _, err := file.Seek(0, io.SeekStart); err != nil {
		return err
	}
	reader, err := decoders.NewReader(ctx, kind, bufio.NewReaderSize(file, copyBuffer), n.NarSize)
	if err != nil {
		return err
	}
	defer reader.Close()
	check := narcheck.NewSum(ctx, n)
	if _, err := io.CopyBuffer(check, onlyReader{reader}, make([]byte, copyBuffer)); err != nil {
		return err
	}
	return check.Result()
}

const copyBuffer = 256 << 10

// onlyReader and onlyWriter hide WriteTo and ReadFrom, with which a copy would bypass the checks,
// or use larger steps.
type (
	onlyReader struct{ io.Reader }
	onlyWriter struct{ io.Writer }
)

// bounded reserves space for a file while it is written.
type bounded struct {
	ctx  context.Context
	w    io.Writer
	room *reservation
	size int64
}

func (b *bounded) Write(p []byte) (int, error) {
	if err := b.ctx.Err(); err != nil {
		return 0, err
	}
	b.size += int64(len(p))
	if err := b.room.grow(b.size); err != nil {
		return 0, err
	}
	return b.w.Write(p)
}
