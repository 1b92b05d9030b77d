package check

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"nar-herder/storage"
	"nar-herder/storage/bytestore"
	"nar-herder/storage/narcheck"
)

// fetch stages the file of a finding from the first source that has it. If none has it, Staged
// is nil and the note says why. An error is a fault of this machine, not of the sources.
func (r *Repairer) fetch(ctx context.Context, finding Finding) (bytestore.Staged, Repair) {
	var failures []string
	unsure := false
	for _, source := range r.options.Sources {
		staged, local, err := r.fetchFrom(ctx, finding, source)
		if err == nil {
			size := finding.Item.StoredSize(finding.Item.FileNamed(finding.Name))
			return staged, Repair{Note: "from " + source.String(), Bytes: size}
		}
		if local {
			return nil, Repair{Err: err}
		}
		failures = append(failures, fmt.Sprintf("%s: %v", source, err))
		unsure = unsure || !errors.Is(err, storage.ErrNotStored) && !errors.Is(err, narcheck.ErrWrongNar) && !errors.Is(err, bytestore.ErrWrongSize)
	}
	if len(failures) == 0 {
		return nil, Repair{Note: "no other instance to fetch it from was named"}
	}
	return nil, Repair{Note: "no source has it: " + strings.Join(failures, "; "), unsure: unsure}
}

// fetchFrom stages the file from one source. local says that an error is a fault of this
// machine.
func (r *Repairer) fetchFrom(ctx context.Context, finding Finding, source Source) (_ bytestore.Staged, local bool, err error) {
	n := finding.Item.FileNamed(finding.Name)
	most := finding.Item.StoredSize(n)
	if most < 0 {
		most = narcheck.MaxFileSize(finding.Item.Narinfo)
	}
	room, err := r.c.ReserveReplacement(ctx, most)
	if err != nil {
		return nil, true, err
	}
	defer room.Release()
	body, err := source.Fetch(ctx, finding.Item, n)
	if err != nil {
		return nil, ctx.Err() != nil, err
	}
	defer body.Close()
	coming := &narcheck.ErrReader{R: &bounded{body, most}}
	// Decompress the bytes as they arrive, so that nothing is read twice.
	checked, checking := io.Pipe()
	verdict := make(chan error, 1)
	go func() {
		err := narcheck.Check(ctx, finding.Item.Narinfo, n, checked, r.options.Decode)
		checked.CloseWithError(err) // also ends the staging
		verdict <- err
	}()
	staged, stageErr := r.c.bytes.Stage(ctx, finding.Name, io.TeeReader(coming, checking), finding.Item.StoredSize(n))
	checking.CloseWithError(stageErr)
	checkErr := <-verdict
	if stageErr == nil && checkErr == nil && ctx.Err() == nil {
		return staged, false, nil
	}
	if stageErr == nil {
		staged.Abort()
	}
	switch {
	case ctx.Err() != nil:
		return nil, true, ctx.Err()
	case errors.Is(checkErr, narcheck.ErrWrongNar):
		return nil, false, checkErr
	case coming.Err != nil:
		return nil, false, coming.Err
	case errors.Is(stageErr, bytestore.ErrWrongSize):
		return nil, false, stageErr
	case stageErr != nil:
		return nil, true, stageErr
	}
	return nil, true, checkErr
}

// bounded fails after the largest number of bytes that a file can have.
type bounded struct {
	r    io.Reader
	left int64
}

func (b *bounded) Read(p []byte) (int, error) {
	if b.left == 0 {
		switch n, err := b.r.Read(make([]byte, 1)); {
		case n > 0:
			return 0, fmt.Errorf("%w: it has more bytes than the nar can have in any compression", bytestore.ErrWrongSize)
		default:
			return 0, err
		}
	}
	n, err := b.r.Read(p[:min(int64(len(p)), b.left)])
	b.left -= int64(n)
	return n, err
}
