package s3

import (
	"context"
	"fmt"
	"io"
	"nar-herder/storage/bytestore"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
)

// look requests an object's first byte: unlike the response to a HEAD, that to a GET
// tells a missing object from a missing bucket.
func (b *Bucket) look(ctx context.Context, name string, options ...func(*s3.Options)) (object, error) {
	ctx, cancel := b.within(ctx)
	defer cancel()
	// Try again if the object was replaced by an empty one, or an empty one by it.
	for try := 0; ; try++ {
		body, found, err := b.get(ctx, name, 0, 1, "", options...)
		if err == nil {
			_, _ = io.CopyN(io.Discard, body, 2) // one byte and EOF
			return found, body.Close()
		}
		if status(err) != http.StatusRequestedRangeNotSatisfiable || try == 3 {
			return object{}, err
		}
		head, err := b.client.HeadObject(ctx, &s3.HeadObjectInput{Bucket: &b.bucket, Key: aws.String(b.key(name))}, options...)
		if err == nil {
			return b.describe(name, aws.ToInt64(head.ContentLength), head.LastModified, head.ETag, head.Metadata), nil
		}
		if status(err) != http.StatusNotFound {
			return object{}, err
		}
	}
}

// object describes an object.
type object struct {
	bytestore.Info
	etag  string // with quotes, as the server sends it
	token string
}

func (b *Bucket) describe(name string, size int64, modified *time.Time, etag *string, metadata map[string]string) object {
	tag := strings.Trim(aws.ToString(etag), `"`)
	return object{
		// In seconds, the precision that all responses have.
		Info: bytestore.Info{
			Name: name, Size: size, Usage: size, ModTime: aws.ToTime(modified).UTC().Truncate(time.Second),
			Tag: tag, Sum: parseSum(metadata[sumKey], tag),
		},
		etag:  aws.ToString(etag),
		token: metadata[tokenKey],
	}
}

// get requests length bytes from offset on, or all if length is negative. Unless etag is
// "", the content must have that ETag. The error is the SDK's; its status is 416 if the
// range is empty.
func (b *Bucket) get(ctx context.Context, name string, offset, length int64, etag string, options ...func(*s3.Options)) (io.ReadCloser, object, error) {
	input := &s3.GetObjectInput{Bucket: &b.bucket, Key: aws.String(b.key(name))}
	switch {
	case length >= 0:
		input.Range = aws.String("bytes=" + strconv.FormatInt(offset, 10) + "-" + strconv.FormatInt(offset+length-1, 10))
	case offset > 0:
		input.Range = aws.String("bytes=" + strconv.FormatInt(offset, 10) + "-")
	case b.checksums.asks():
		// The checksum is that of the whole object.
		input.ChecksumMode = types.ChecksumModeEnabled
	}
	if etag != "" {
		input.IfMatch = &etag
	}
	output, err := b.getObject(ctx, input, options...)
	if err != nil {
		return nil, object{}, err
	}
	size, err := sizeOf(output, offset, length)
	if err != nil {
		output.Body.Close()
		return nil, object{}, err
	}
	return output.Body, b.describe(name, size, output.LastModified, output.ETag, output.Metadata), nil
}

// sizeOf returns the size of the whole object, or an error if the response doesn't match
// the request.
func sizeOf(output *s3.GetObjectOutput, offset, length int64) (int64, error) {
	if output.ContentLength == nil || *output.ContentLength < 0 {
		return 0, &fault{text: "the response has no Content-Length: check the proxies on the way to the server"}
	}
	if aws.ToString(output.ETag) == "" || output.LastModified == nil {
		return 0, errNotS3
	}
	received := *output.ContentLength
	if output.ContentRange == nil {
		if (offset > 0 || length >= 0) && received > 0 {
			return 0, &fault{text: "the server sent the whole object instead of the requested range"}
		}
		return received, nil
	}
	first, last, size, ok := parseContentRange(*output.ContentRange)
	if !ok || first != offset || last-first+1 != received || last >= size || length < 0 && last != size-1 || length > 0 && last != min(offset+length, size)-1 {
		return 0, &fault{text: fmt.Sprintf("the server answered with %q, %d bytes, to a request for %d bytes from %d on", *output.ContentRange, received, length, offset)}
	}
	return size, nil
}

// parseContentRange parses "bytes FIRST-LAST/SIZE".
func parseContentRange(text string) (first, last, size int64, ok bool) {
	text, ok = strings.CutPrefix(text, "bytes ")
	part, whole, slash := strings.Cut(text, "/")
	begin, end, dash := strings.Cut(part, "-")
	if !ok || !slash || !dash {
		return 0, 0, 0, false
	}
	first, firstErr := strconv.ParseInt(begin, 10, 64)
	last, lastErr := strconv.ParseInt(end, 10, 64)
	size, sizeErr := strconv.ParseInt(whole, 10, 64)
	return first, last, size, firstErr == nil && lastErr == nil && sizeErr == nil
}
