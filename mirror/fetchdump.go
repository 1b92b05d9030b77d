package mirror

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/klauspost/compress/zstd"

	"nar-herder/internal/disk"
	"nar-herder/internal/rowsum"
	"nar-herder/mirror/original"
	"nar-herder/peer"
)

// dump is what was downloaded.
type dump struct {
	*original.Database
	// name is that of the download, and database that of the file that is read,
	// another where the download is compressed.
	name, database string
	// verified says that it is what the source has made.
	verified bool
	modified time.Time
	tag      string
	// sum is what the dump says of all its items; "" for nothing.
	sum string
	// damaged is what it says of items that it lacks, see [original.DamagedKey].
	damaged string
}

// isWhole says that what is read of the dump is compared as a whole with what was
// written.
func (d *dump) isWhole() bool { return d.verified && d.sum != "" }

// compare makes sure that the items are those that were written, as far as the dump
// tells.
func (d *dump) compare(sum *rowsum.Sum) error {
	if d.isWhole() && sum.String() != d.sum {
		return fmt.Errorf("%w: the sum of its items is %s, and not %.80q", errBadDump, sum, d.sum)
	}
	return nil
}

// checkSum reads all items before any of them is merged.
func (d *dump) checkSum(ctx context.Context) error {
	if !d.isWhole() {
		return nil
	}
	var sum rowsum.Sum
	for item, err := range d.Items(ctx, original.FromStart) {
		var row *original.RowError
		if err != nil && !errors.As(err, &row) {
			return badDump(err)
		}
		if err == nil {
			original.AddTo(&sum, item)
		}
	}
	return d.compare(&sum)
}

// dumps is what is kept of the source's dumps from one try to the next.
type dumps struct {
	// held is the last one that was not accepted.
	held held
	// room looks at the disk; nil has the system do so.
	room disk.Look
	told reminder
	// tidied says that nothing of a dump is left on the disk.
	tidied bool
}

// held is a dump that is of no use, so that it is neither downloaded nor merged
// again as long as the source has it.
type held struct {
	tag string
	at  time.Time
	// err says why; nil for one that may have been damaged on its way.
	err error
}

// heldFor is for how long a dump that makes no sense is left alone, and one that
// can't be told from the next.
const heldFor = time.Hour

// stillHeld returns why the source's dump is not taken, as long as it has the same.
func (m *Mirror) stillHeld(ctx context.Context) error {
	held := m.dumps.held
	if held.err == nil {
		return nil
	}
	tag, _, err := m.Source.Look(ctx, peer.DumpPath, true)
	if err != nil {
		return err
	}
	var refused *RefusedError
	isRefused := errors.As(held.err, &refused)
	if tag != held.tag || (tag == "" || !isRefused) && m.now().Sub(held.at) >= heldFor {
		return nil
	}
	if !isRefused {
		return held.err
	}
	switch err := m.unlessAccepted(ctx, "its dump is the one that was refused"); {
	case err == nil:
		return nil
	case !errors.As(err, &refused):
		return err
	}
	return held.err
}

// hold notes what has become of a dump.
func (m *Mirror) hold(db *dump, err error) {
	var refused *RefusedError
	switch {
	case errors.As(err, &refused), errors.Is(err, errOldDump):
		m.dumps.held = held{db.tag, m.now(), err}
	case errors.Is(err, errBadDump) && (db.verified || db.tag != "" && db.tag == m.dumps.held.tag):
		m.dumps.held = held{db.tag, m.now(), err}
	case errors.Is(err, errBadDump):
		m.dumps.held = held{tag: db.tag} // it may have been damaged on its way
	default:
		m.dumps.held = held{}
	}
}

// errBadDump says that a dump can't be used.
var errBadDump = errors.New("its dump makes no sense")

// errOldDump says that changes behind a dump have left the source's log.
var errOldDump = errors.New("its dump is older than its log of changes")

// badDump makes an error in the reading of a dump one of the dump, unless it is one
// of this machine, or the end of the context.
func badDump(err error) error {
	if err == nil || isLocal(err) || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return fmt.Errorf("%w: %w", errBadDump, err)
}

// fetchDump downloads the source's dump and opens it. It is to be given to
// closeDump, unless there is an error.
func (m *Mirror) fetchDump(ctx context.Context) (*dump, error) {
	name := m.dumpName()
	file, err := m.Source.Download(ctx, peer.DumpPath, name, true, progressOf("downloading the dump", m.now, func(what string) { m.status.doing(Syncing, what) }))
	if err != nil {
		return nil, err
	}
	db := &dump{name: name, database: name, verified: file.Verified, modified: file.Modified, tag: file.Tag}
	if file.Encoding == "zstd" {
		db.database = name + decompressed
		if err := badDump(decompress(ctx, name, db.database, m.dumps.room)); err != nil {
			return nil, m.closeDump(ctx, db, fmt.Errorf("decompress the dump of %s: %w", m.Source, err))
		}
	}
	db.Database, err = original.Open(ctx, db.database)
	if err == nil && !file.Verified {
		m.status.doing(Syncing, "checking the dump")
		err = db.Check(ctx)
	}
	if err == nil {
		var info map[string]string
		info, err = db.Info(ctx)
		db.sum = info[original.SumKey]
	}
	if err == nil {
		db.damaged, err = db.Damaged(ctx)
	}
	if err = badDump(err); err != nil {
		return nil, m.closeDump(ctx, db, fmt.Errorf("open the dump of %s: %w", m.Source, err))
	}
	return db, nil
}

// closeDump ends the use of a dump, with the error that this has come to. What was
// downloaded stays until it has done its work, or can't: it may have taken a day.
func (m *Mirror) closeDump(ctx context.Context, db *dump, err error) error {
	m.hold(db, err)
	if db.Database != nil {
		if closeErr := db.Close(); closeErr != nil {
			m.log.Warn("can't close the dump", "error", closeErr)
		}
	}
	if ctx.Err() != nil {
		return err // to free gigabytes takes longer than who stops the program waits for
	}
	var removeErr error
	if err == nil || errors.Is(err, errBadDump) || errors.Is(err, errOldDump) {
		removeErr = m.discardDump()
	} else if db.database != db.name {
		removeErr = peer.Discard(db.database) // it is soon made again
	}
	if removeErr != nil {
		m.log.Warn("can't remove what was downloaded", "error", removeErr)
	}
	return err
}

// decompressed is put behind the name of a dump without its compression.
const decompressed = ".db"

func (m *Mirror) dumpName() string { return m.Downloads + ".dump" }

// discardDump removes a dump, or what there is of one.
func (m *Mirror) discardDump() error {
	return errors.Join(peer.Discard(m.dumpName()+decompressed), peer.Discard(m.dumpName()))
}

// tidy removes, once the source is followed, what an earlier run of the program has
// left of a beginning, as when it was killed just after that.
func (m *Mirror) tidy() {
	if m.dumps.tidied {
		return
	}
	m.dumps.tidied = true
	if err := errors.Join(m.discardDump(), removeBeginnings(m.Downloads)); err != nil {
		m.log.Warn("can't remove what an earlier run has left", "error", err)
	}
}

// progressOf tells how far a download is, once a second.
func progressOf(what string, now func() time.Time, tell func(string)) func(done, total int64) {
	var told time.Time
	return func(done, total int64) {
		if now := now(); now.Sub(told) >= time.Second {
			told = now
			tell(describeProgress(what, done, total))
		}
	}
}

func describeProgress(what string, done, total int64) string {
	const mega = 1 << 20
	if total < 0 {
		return fmt.Sprintf("%s: %d MiB so far", what, done/mega)
	}
	return fmt.Sprintf("%s: %d of %d MiB", what, done/mega, total/mega)
}

const (
	// maxWindow is the memory that a frame may ask for: the most that RFC 9659 allows as
	// a Content-Encoding, and what [mirror/dump] uses.
	maxWindow = 8 << 20
	// maxRatio is how many bytes of a database may come out of one, several times
	// as many as of any that has narinfos in it, and ratioFree how many of any.
	maxRatio  = 100
	ratioFree = 64 << 20
)

// decompress writes a file anew without zstd, as long as there is room.
func decompress(ctx context.Context, from, to string, room disk.Look) (err error) {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	info, err := in.Stat()
	if err != nil {
		return err
	}
	reader, err := zstd.NewReader(in, zstd.WithDecoderMaxWindow(maxWindow), zstd.WithDecoderConcurrency(1))
	if err != nil {
		return err
	}
	defer reader.Close()
	out, err := disk.OpenFile(to, os.O_RDWR|os.O_TRUNC, 0o664, disk.GroupWrites)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	most := maxRatio*info.Size() + ratioFree
	bounded := &disk.Writer{W: out, Directory: filepath.Dir(to), Look: room}
	n, err := io.CopyBuffer(struct{ io.Writer }{bounded}, io.LimitReader(&cancelled{ctx, reader}, most+1), make([]byte, 1<<20))
	if err == nil && n > most {
		err = fmt.Errorf("over %d bytes come out of %d, as of no database", most, info.Size())
	}
	return err
}

// cancelled ends a reading with its context.
type cancelled struct {
	ctx context.Context
	r   io.Reader
}

func (c *cancelled) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(p)
}
