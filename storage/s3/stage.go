package s3

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"nar-herder/storage/bytestore"
	"net/http"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
)

const (
	// mostInMemory is up to which size content waits in memory for its commit.
	mostInMemory = 1 << 20
	// mostStaged bounds what waits so in all.
	mostStaged = 64 << 20
	// lastTimeout is for what is done after a failure: finding out whether a commit
	// did succeed after all, and getting rid of an upload. hurriedTimeout is the
	// same when the caller has left, as a program does that is about to end.
	lastTimeout    = 15 * time.Second
	hurriedTimeout = 500 * time.Millisecond
	// mostConflicts is how often a commit is tried again that has met another one.
	mostConflicts = 3
	// contentType is what clients with presigned URLs are told.
	contentType = "application/octet-stream"
)

// Stage implements [bytestore.Store].
func (b *Bucket) Stage(ctx context.Context, name string, from io.Reader, size int64) (bytestore.Staged, error) {
	if !fs.ValidPath(name) || name == "." || isTemporary(name) {
		return nil, fmt.Errorf("store %q in %s: not a name for a nar: %w", name, b, fs.ErrInvalid)
	}
	if len(b.key(name)) > longestKey {
		return nil, fmt.Errorf("store %s in %s: the name is too long for S3: use a shorter prefix", name, b)
	}
	if size < 0 {
		return nil, fmt.Errorf("store %s in %s: %w: %d bytes", name, b, bytestore.ErrWrongSize, size)
	}
	if err := ctx.Err(); err != nil {
		return nil, b.fail("store", name, err)
	}
	s := &staged{b: b, name: name, token: randomWord()}
	// Where there is no more room, the server holds it.
	if size <= mostInMemory && b.staged.TryAcquire(size) {
		s.content = make([]byte, size)
		s.free = func() { s.content = nil; b.staged.Release(size) }
		err := fill(ctx, from, s.content)
		if err == nil {
			err = atEnd(from)
		}
		if err != nil {
			s.free()
			return nil, b.sourceError(name, err)
		}
		s.sum = sumOfWhole(s.content)
		return s, nil
	}
	var err error
	if s.upload, err = b.stageUpload(ctx, name, s.token, from, size); err != nil {
		return nil, err
	}
	return s, nil
}

// sourceError is about the reader that content comes from.
func (b *Bucket) sourceError(name string, err error) error {
	return fmt.Errorf("store %s in %s: %w", name, b, err)
}

// fill reads as much as the buffer holds.
func fill(ctx context.Context, from io.Reader, buffer []byte) error {
	for read, empty := 0, 0; read < len(buffer); {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := from.Read(buffer[read:])
		if read += n; read == len(buffer) {
			return nil
		}
		if err == io.EOF {
			return fmt.Errorf("%w: the content ends before the size that was said", bytestore.ErrWrongSize)
		}
		if err != nil {
			return err
		}
		if n > 0 {
			empty = 0
		} else if empty++; empty > 100 {
			return io.ErrNoProgress
		}
	}
	return nil
}

// atEnd makes sure that nothing follows.
func atEnd(from io.Reader) error {
	n, err := io.ReadFull(from, make([]byte, 1))
	if n > 0 {
		return fmt.Errorf("%w: there is more content than was said", bytestore.ErrWrongSize)
	}
	if err != io.EOF {
		return err
	}
	return nil
}

// staged is content in memory, or in an upload whose parts are all there.
type staged struct {
	b           *Bucket
	name, token string
	sum         string // of content
	content     []byte
	free        func() // gives the room of content back
	upload      *upload

	done, aborted bool
}

// Commit implements [bytestore.Staged].
func (s *staged) Commit(ctx context.Context) error {
	return s.commit(ctx, func() error { return s.show(ctx, nil) })
}

// CommitNew implements [bytestore.Staged].
func (s *staged) CommitNew(ctx context.Context) error {
	return s.commit(ctx, func() error { return s.showNew(ctx) })
}

// commit shows what is staged, by the given call.
func (s *staged) commit(ctx context.Context, show func() error) error {
	if s.aborted {
		return fmt.Errorf("store %s in %s: it was aborted", s.name, s.b)
	}
	if s.done {
		return nil
	}
	if err := ctx.Err(); err != nil {
		return s.b.fail("store", s.name, err)
	}
	err := show()
	if err != nil && !s.shown(ctx) {
		if errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("store %s in %s: %w", s.name, s.b, fs.ErrExist)
		}
		return s.b.fail("store", s.name, err)
	}
	s.done = true
	if s.free != nil {
		s.free()
	}
	return nil
}

// show has the server show it, under the condition unless that is nil.
func (s *staged) show(ctx context.Context, ifNoneMatch *string) error {
	if s.upload != nil {
		return s.upload.complete(ctx, ifNoneMatch)
	}
	ctx, cancel := s.b.within(ctx)
	defer cancel()
	return s.b.protected(func(kind checksum, _ bool) error {
		input := &s3.PutObjectInput{
			Bucket: &s.b.bucket, Key: aws.String(s.b.key(s.name)), Body: bytes.NewReader(s.content), ContentLength: aws.Int64(int64(len(s.content))),
			ContentType: aws.String(contentType), Metadata: metadata(s.token, s.sum), IfNoneMatch: ifNoneMatch,
		}
		kind.protectPut(input, s.content)
		output, err := s.b.client.PutObject(ctx, input, s.b.unsigned)
		if err == nil && output.ETag == nil {
			err = errNotS3
		}
		return err
	})
}

// showNew is show where there is nothing, or else [fs.ErrExist]. As some servers pass
// over the condition, it is looked before.
func (s *staged) showNew(ctx context.Context) error {
	for try := 0; ; try++ {
		_, err := s.b.look(ctx, s.name)
		if err == nil {
			return fs.ErrExist
		}
		if !isAbsent(err) {
			return err
		}
		err = s.show(ctx, aws.String("*"))
		switch {
		case is(err, http.StatusPreconditionFailed, "PreconditionFailed"):
			return fs.ErrExist
		case is(err, http.StatusNotImplemented, "NotImplemented"):
			return s.show(ctx, nil)
		case is(err, http.StatusConflict, "ConditionalRequestConflict") && s.upload == nil:
			// Another is about to show its own.
			if try < mostConflicts && s.b.pause(ctx, try) == nil {
				continue
			}
		}
		return err
	}
}

// is says whether the server has answered with the status, or the error code.
func is(err error, wanted int, wantedCode string) bool {
	return status(err) == wanted || code(err) == wantedCode
}

// shown finds out whether a commit that failed has succeeded: the answer may have
// been lost, or been to a repetition. The caller may be gone.
func (s *staged) shown(ctx context.Context) bool {
	ctx, cancel := last(ctx)
	defer cancel()
	found, err := s.b.look(ctx, s.name, fewAttempts)
	return err == nil && found.token == s.token
}

// last is a context for what is to be done although a call has failed.
func last(ctx context.Context) (context.Context, context.CancelFunc) {
	timeout := lastTimeout
	if ctx.Err() != nil {
		timeout = hurriedTimeout
	}
	return context.WithTimeout(context.WithoutCancel(ctx), timeout)
}

// Abort implements [bytestore.Staged].
func (s *staged) Abort() {
	if s.done || s.aborted {
		return
	}
	s.aborted = true
	if s.free != nil {
		s.free()
	}
	if s.upload != nil {
		s.upload.abort()
	}
}

func fewAttempts(o *s3.Options) { o.RetryMaxAttempts = 2 }

func randomWord() string { return rand.Text() }
