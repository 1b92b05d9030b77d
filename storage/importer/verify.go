package importer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/bits"
	"os"
	"time"

	"nar-herder/narinfo"
	"nar-herder/storage"
	"nar-herder/storage/bytestore"
	"nar-herder/storage/index"
	"nar-herder/storage/narcheck"
)

// A nar is decompressed and compared with the NarHash before its row is written, so before
// clients can request it. Files that the row of the same nar already claims are not read
// again: package check does that.

// verify compares the Nth file with the narinfo.
func (p *prepared) verify(ctx context.Context, n int, from io.Reader, decode narcheck.Decoder) error {
	err := narcheck.Check(ctx, p.Narinfo, n, &reading{ctx, from, p.verifying}, decode)
	switch {
	case err == nil:
		p.verified |= 1 << n
	case errors.Is(err, narcheck.ErrUnreadable):
		err = fmt.Errorf("can't compare it with the NarHash: %w: use --no-verify if it is right nevertheless", err)
	}
	return err
}

// verifyStored verifies the Nth file, which is in the storage.
func (im *Importer) verifyStored(ctx context.Context, p *prepared, n int, name string) error {
	reader, info, err := im.bytes.Open(ctx, name, 0, -1)
	if err != nil {
		return err
	}
	defer reader.Close()
	if info.Size != index.FileSize(p.Narinfo, n, p.entry.Sizes) {
		return storage.ErrChanged
	}
	p.seen[n] = &info
	return p.verify(ctx, n, io.LimitReader(reader, info.Size), p.Decode)
}

// stageVerified stages a copy of the Nth file and verifies it on the way: the file is read
// once, and what is stored is what was verified, even if the file changes meanwhile.
func (im *Importer) stageVerified(ctx context.Context, p *prepared, n int, name string, file *os.File, size int64) (bytestore.Staged, error) {
	read, write := io.Pipe()
	defer read.Close()
	head := new(bytes.Buffer)
	coming := &tee{io.LimitReader(file, size+1), head}
	opened, verdict := make(chan error, 1), make(chan error, 1)
	go func() {
		err := p.verify(ctx, n, coming, func(ctx context.Context, compression string, from io.Reader, narSize int64) (io.ReadCloser, error) {
			reader, err := p.Decode(ctx, compression, from, narSize)
			coming.w = write
			opened <- err
			return reader, err
		})
		write.CloseWithError(err) // ends the staging, too
		verdict <- err
	}()
	// An upload holds memory, so begin it when the decoder has its own: otherwise two files
	// could wait for each other.
	if err := <-opened; err != nil {
		return nil, <-verdict
	}
	staged, err := im.bytes.Stage(ctx, name, struct {
		io.Reader
		io.ReaderAt
	}{io.MultiReader(head, read), file}, size)
	read.CloseWithError(err) // ends the verification, too
	if wrong := <-verdict; wrong != nil {
		if staged != nil {
			staged.Abort()
		}
		return nil, wrong
	}
	return staged, err
}

// tee is like [io.TeeReader], but its writer can be replaced.
type tee struct {
	r io.Reader
	w io.Writer
}

func (t *tee) Read(p []byte) (int, error) {
	n, err := t.r.Read(p)
	if n > 0 {
		if n, err := t.w.Write(p[:n]); err != nil {
			return n, err
		}
	}
	return n, err
}

// reading reads a file until the context ends, and reports the progress.
type reading struct {
	ctx   context.Context
	from  io.Reader
	moved func(bytes int64) // may be nil
}

func (r *reading) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	n, err := r.from.Read(p)
	if r.moved != nil && n > 0 {
		r.moved(int64(n))
	}
	return n, err
}

// claims reports whether a row claims the Nth file of a narinfo: the same nar in the same
// compression, with the name and size.
func claims(row *storage.Item, narinfo *narinfo.Narinfo, n int, name string, size int64) bool {
	if row == nil || row.Narinfo.NarHash != narinfo.NarHash {
		return false
	}
	i := row.FileNamed(name)
	return i >= 0 && row.HasStored(i) && row.StoredSize(i) == size && row.Narinfo.Files[i].Compression == narinfo.Files[n].Compression
}

// stillClaimed reports whether the row claims the files that it claimed when the addition was
// prepared, and that were not read.
func (p *prepared) stillClaimed(row *storage.Item) bool {
	for n, file := range p.Narinfo.Files {
		name := storage.NarName(file, p.Narinfo.StorePath.Hash)
		if p.claimed&(1<<n) != 0 && !claims(row, p.Narinfo, n, name, index.FileSize(p.Narinfo, n, p.entry.Sizes)) {
			return false
		}
	}
	return true
}

// verifiedAt returns the VerifiedAt of the addition's entry, which replaces the row.
func (p *prepared) verifiedAt(row *storage.Item) time.Time {
	switch unread := p.entry.Stored &^ p.verified; {
	case p.entry.Stored == 0 || unread&^p.claimed != 0:
		return time.Time{}
	case unread != 0:
		return row.VerifiedAt
	}
	return p.begun
}

// unverified returns the number of files that are new in the storage and were not verified.
func (p *prepared) unverified() int {
	return bits.OnesCount64(p.entry.Stored &^ p.verified &^ p.claimed)
}
