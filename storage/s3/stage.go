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
	// mostInMemory is the largest size of content that is kept in memory until Commit.
	mostInMemory = 1 << 20
	// mostStaged bounds the content in memory in all.
	mostStaged = 64 << 20
	// lastTimeout bounds the calls after a failure, which find out whether a commit has
	// succeeded nevertheless, or abort an upload. canceledTimeout applies if the
	// caller's context has ended, as when the program is about to exit.
	lastTimeout     = 15 * time.Second
	canceledTimeout = 500 * time.Millisecond
	// mostConflicts is how often a commit is retried that conflicts with another one.
	mostConflicts = 3
	// contentType is for clients with presigned URLs.
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
	// If memory is used up, upload it.
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

// sourceError wraps an error of the reader that provides the content.
func (b *Bucket) sourceError(name string, err error) error {
	return fmt.Errorf("store %s in %s: %w", name, b, err)
}

// fill fills the buffer.
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
			return fmt.Errorf("%w: fewer bytes than announced", bytestore.ErrWrongSize)
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

// atEnd returns an error if the reader has more bytes.
func atEnd(from io.Reader) error {
	n, err := io.ReadFull(from, make([]byte, 1))
	if n > 0 {
		return fmt.Errorf("%w: more bytes than announced", bytestore.ErrWrongSize)
	}
	if err != io.EOF {
		return err
	}
	return nil
}

// staged is content in memory, or an upload with all its parts.
type staged struct {
	b           *Bucket
	name, token string
	sum         string // of content
	content     []byte
	free        func() // frees content
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

// commit makes the content visible with the given call.
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

// show makes the content visible, under the condition unless that is nil.
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

// showNew is show for a new name; otherwise it returns [fs.ErrExist]. It looks first, as
// some servers ignore the condition.
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
			// Another commit is under way.
			if try < mostConflicts && s.b.pause(ctx, try) == nil {
				continue
			}
		}
		return err
	}
}

// is reports whether the server has answered with the status or the error code.
func is(err error, wanted int, wantedCode string) bool {
	return status(err) == wanted || code(err) == wantedCode
}

// shown reports whether a commit that returned an error has succeeded: the response may
// have been lost, or have been that to a retry. The caller's context may have ended.
func (s *staged) shown(ctx context.Context) bool {
	ctx, cancel := last(ctx)
	defer cancel()
	found, err := s.b.look(ctx, s.name, fewAttempts)
	return err == nil && found.token == s.token
}

// last returns a context for the calls after a failure.
func last(ctx context.Context) (context.Context, context.CancelFunc) {
	timeout := lastTimeout
	if ctx.Err() != nil {
		timeout = canceledTimeout
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
