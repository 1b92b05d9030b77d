package s3

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
)

const (
	// smallestPart is the part size of all but the largest uploads: large enough to
	// make the overhead of a request negligible, small enough to repeat one.
	smallestPart = 8 << 20
	// mostPartsOfOne is S3's limit for one upload.
	mostPartsOfOne = 10_000
	// partsAtOnce is how many parts of one upload are sent concurrently.
	partsAtOnce = 4
	// mostParts bounds the bytes of all parts in memory. Only a single larger part,
	// of a nar above 600 GB, may exceed it.
	mostParts = 64 << 20
	// partTimeout bounds one part with all attempts. It is a last resort: each
	// connection has a progress timeout.
	partTimeout = time.Hour
	// mostAborts bounds how often an upload is aborted again.
	mostAborts = 5
)

// upload is a multipart upload, which is invisible until it is completed.
type upload struct {
	b        *Bucket
	name, id string
	sum      string // "" if it isn't known before the bytes are sent
	size     int64
	checksum checksum
	parts    []types.CompletedPart
	ctx      context.Context // Stage's; abort takes less time if it has ended
	cut      bool            // requests with parts were interrupted, and the server may still process them
}

// partSizeFor returns the part size for content of the given size.
func (b *Bucket) partSizeFor(size int64) int64 {
	const unit = 1 << 20
	needed := (size + mostPartsOfOne - 1) / mostPartsOfOne
	if needed <= b.partSize {
		return b.partSize
	}
	return (needed + unit - 1) / unit * unit
}

// stageUpload sends content to the server without completing the upload.
func (b *Bucket) stageUpload(ctx context.Context, name, token string, from io.Reader, size int64) (*upload, error) {
	u := &upload{b: b, name: name, size: size, ctx: ctx}
	err := u.sendAll(ctx, token, from)
	if err == nil {
		return u, nil
	}
	if u.id != "" {
		u.cut = true
		u.abort()
	}
	return nil, err
}

// sendAll sends the parts, several at a time, while it reads the next one. If a part
// fails, it waits for those in flight before the upload is aborted: a server may store a part
// after the abort, even if the request was interrupted.
func (u *upload) sendAll(ctx context.Context, token string, from io.Reader) error {
	partSize := u.b.partSizeFor(u.size)
	u.parts = make([]types.CompletedPart, (u.size+partSize-1)/partSize)
	if len(u.parts) > 1 {
		u.sum = u.sumAhead(ctx, from)
	}
	slots := make(chan struct{}, partsAtOnce)
	callers := ctx
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var group sync.WaitGroup
	for i := range u.parts {
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
		}
		err := u.next(ctx, i, min(partSize, u.size-int64(i)*partSize), token, from, func(part []byte, free func()) {
			group.Go(func() {
				defer func() { free(); <-slots }()
				if err := u.send(callers, i, part); err != nil {
					cancel(u.b.fail(fmt.Sprintf("store part %d of", i+1), u.name, err))
				}
			})
		})
		if err != nil {
			cancel(err)
			break
		}
	}
	group.Wait()
	// The first error has caused the others.
	if err := context.Cause(ctx); err != nil {
		if err == ctx.Err() { // the caller's
			return u.b.fail("store", u.name, err)
		}
		return err
	}
	return nil
}

// next reads a part and calls then with it, and with a function that frees its memory.
func (u *upload) next(ctx context.Context, i int, size int64, token string, from io.Reader, then func(part []byte, free func())) error {
	room := min(size, mostParts)
	if err := u.b.parts.Acquire(ctx, room); err != nil {
		return u.b.fail("store", u.name, err)
	}
	part, free, err := u.b.readPart(ctx, from, size)
	release := func() { free(); u.b.parts.Release(room) }
	if err == nil && i == len(u.parts)-1 {
		err = atEnd(from)
	}
	if err != nil {
		release()
		return u.b.sourceError(u.name, err)
	}
	if i == 0 {
		if len(u.parts) == 1 {
			u.sum = u.sumAhead(ctx, bytes.NewReader(part))
		}
		// Create the upload only now: many sources fail at the first read.
		sent, err := u.begin(ctx, token, part)
		if err != nil {
			release()
			return u.b.fail("store", u.name, err)
		}
		if sent {
			release()
			return nil
		}
	}
	then(part, release)
	return nil
}

// begin creates the upload. While it is unknown which checksums the server supports,
// begin also sends the first part, as a server may reject either request.
func (u *upload) begin(ctx context.Context, token string, first []byte) (sent bool, err error) {
	err = u.b.protected(func(kind checksum, trial bool) error {
		if u.id != "" { // with a checksum that the server has rejected
			u.abort()
			u.id = ""
		}
		u.checksum = kind
		if err := u.create(ctx, token); err != nil || !trial {
			return err
		}
		err := u.send(ctx, 0, first)
		sent = err == nil
		return err
	})
	return sent, err
}

// readPart reads content into memory. free releases it.
func (b *Bucket) readPart(ctx context.Context, from io.Reader, size int64) (part []byte, free func(), err error) {
	if size <= b.partSize {
		buffer := b.buffers.Get().(*[]byte)
		part = (*buffer)[:size]
		return part, func() { b.buffers.Put(buffer) }, fill(ctx, from, part)
	}
	// Memory grows with the bytes that arrive, as the size is only a claim.
	for int64(len(part)) < size && err == nil {
		begin := len(part)
		grown := make([]byte, min(size, max(b.partSize, 2*int64(begin))))
		copy(grown, part)
		part = grown
		err = fill(ctx, from, part[begin:])
	}
	return part, func() {}, err
}

func (u *upload) create(ctx context.Context, token string) error {
	ctx, cancel := u.b.within(ctx)
	defer cancel()
	output, err := u.b.client.CreateMultipartUpload(ctx, &s3.CreateMultipartUploadInput{
		Bucket: &u.b.bucket, Key: aws.String(u.b.key(u.name)), ChecksumAlgorithm: u.checksum.algorithm(),
		ContentType: aws.String(contentType), Metadata: metadata(token, u.sum),
	})
	if err == nil && aws.ToString(output.UploadId) == "" {
		err = errNotS3
	}
	if err == nil {
		u.id = *output.UploadId
	}
	return err
}

func (u *upload) send(ctx context.Context, i int, part []byte) error {
	ctx, cancel := context.WithTimeoutCause(ctx, partTimeout, errNoAnswer)
	defer cancel()
	completed := types.CompletedPart{PartNumber: aws.Int32(int32(i + 1))}
	input := &s3.UploadPartInput{
		Bucket: &u.b.bucket, Key: aws.String(u.b.key(u.name)), UploadId: &u.id, PartNumber: completed.PartNumber,
		Body: bytes.NewReader(part), ContentLength: aws.Int64(int64(len(part))),
	}
	u.checksum.protectPart(input, &completed, part)
	output, err := u.b.client.UploadPart(ctx, input, u.b.unsigned)
	if err == nil && output.ETag == nil {
		err = errNotS3
	}
	if err == nil {
		completed.ETag = output.ETag
		u.parts[i] = completed
	}
	u.b.forgetRefused(u.checksum, err)
	return err
}

// complete makes the upload visible, under the condition unless that is nil. A server
// may need minutes for many parts.
func (u *upload) complete(ctx context.Context, ifNoneMatch *string) error {
	ctx, cancel := context.WithTimeoutCause(ctx, attempts*completeTimeout, errNoAnswer)
	defer cancel()
	output, err := u.b.client.CompleteMultipartUpload(ctx, &s3.CompleteMultipartUploadInput{
		Bucket: &u.b.bucket, Key: aws.String(u.b.key(u.name)), UploadId: &u.id, MpuObjectSize: &u.size, IfNoneMatch: ifNoneMatch,
		MultipartUpload: &types.CompletedMultipartUpload{Parts: u.parts},
	})
	if err == nil && output.ETag == nil {
		err = errNotS3
	}
	return err
}

// abort deletes the parts. If that fails, they use space until they are removed.
func (u *upload) abort() {
	ctx, cancel := last(u.ctx)
	defer cancel()
	gone, err := u.b.abort(ctx, u.id, u.name, fewAttempts)
	// A part that the server is still receiving reappears after the abort: abort until
	// the upload is gone.
	for try := 0; u.cut && !gone && err == nil && try < mostAborts && u.b.pause(ctx, try) == nil; try++ {
		gone, err = u.b.abort(ctx, u.id, u.name, fewAttempts)
	}
	if err != nil {
		u.b.log.Warn("an unfinished upload stays in the bucket until the owner's server, check --repair or a lifecycle rule removes it", "error", err)
	}
}

// abort aborts an upload, and reports whether it was gone already.
func (b *Bucket) abort(ctx context.Context, id, name string, options ...func(*s3.Options)) (gone bool, err error) {
	output, err := b.client.AbortMultipartUpload(ctx, &s3.AbortMultipartUploadInput{Bucket: &b.bucket, Key: aws.String(b.key(name)), UploadId: &id}, options...)
	if code(err) == "NoSuchUpload" {
		return true, nil
	}
	if err == nil && hasBody(output.ResultMetadata) {
		err = errNotS3
	}
	if err != nil {
		return false, b.fail("drop the unfinished upload of", name, err)
	}
	return false, nil
}
