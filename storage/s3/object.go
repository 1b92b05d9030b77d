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

// look asks for an object's first byte: unlike the answer to a HEAD, that to a GET
// says what is not there, the object or the bucket.
func (b *Bucket) look(ctx context.Context, name string, options ...func(*s3.Options)) (object, error) {
	ctx, cancel := b.within(ctx)
	defer cancel()
	// An object that is replaced by an empty one or back meanwhile is asked for
	// again.
	for try := 0; ; try++ {
		body, found, err := b.get(ctx, name, 0, 1, "", options...)
		if err == nil {
			_, _ = io.CopyN(io.Discard, body, 2) // one byte, and its end
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

// object is what is known of one.
type object struct {
	bytestore.Info
	etag  string // as the server writes it
	token string
}

func (b *Bucket) describe(name string, size int64, modified *time.Time, etag *string, metadata map[string]string) object {
	tag := strings.Trim(aws.ToString(etag), `"`)
	return object{
		// To the second, as that is what all answers have.
		Info: bytestore.Info{
			Name: name, Size: size, Usage: size, ModTime: aws.ToTime(modified).UTC().Truncate(time.Second),
			Tag: tag, Sum: parseSum(metadata[sumKey], tag),
		},
		etag:  aws.ToString(etag),
		token: metadata[tokenKey],
	}
}

// get asks for length bytes from offset on, or for all when length is negative; of
// the content with that ETag, unless it is "". The error is the SDK's, and has
// status 416 when there are none.
func (b *Bucket) get(ctx context.Context, name string, offset, length int64, etag string, options ...func(*s3.Options)) (io.ReadCloser, object, error) {
	input := &s3.GetObjectInput{Bucket: &b.bucket, Key: aws.String(b.key(name))}
	switch {
	case length >= 0:
		input.Range = aws.String("bytes=" + strconv.FormatInt(offset, 10) + "-" + strconv.FormatInt(offset+length-1, 10))
	case offset > 0:
		input.Range = aws.String("bytes=" + strconv.FormatInt(offset, 10) + "-")
	case b.checksums.asks():
		// Only of a whole object, its checksum is that of the bytes that come.
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

// sizeOf returns the size of the whole object, if the answer is one to what was
// asked.
func sizeOf(output *s3.GetObjectOutput, offset, length int64) (int64, error) {
	if output.ContentLength == nil || *output.ContentLength < 0 {
		return 0, &fault{text: "the answer does not say how long it is: check what lies on the way to the server"}
	}
	if aws.ToString(output.ETag) == "" || output.LastModified == nil {
		return 0, errNotS3
	}
	comes := *output.ContentLength
	if output.ContentRange == nil {
		if (offset > 0 || length >= 0) && comes > 0 {
			return 0, &fault{text: "the server gives the whole where a range was asked for"}
		}
		return comes, nil
	}
	first, last, size, ok := parseContentRange(*output.ContentRange)
	if !ok || first != offset || last-first+1 != comes || last >= size || length < 0 && last != size-1 || length > 0 && last != min(offset+length, size)-1 {
		return 0, &fault{text: fmt.Sprintf("the server answers with %q, %d bytes, where %d from %d on were asked for", *output.ContentRange, comes, length, offset)}
	}
	return size, nil
}

// parseContentRange reads "bytes FIRST-LAST/SIZE".
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
