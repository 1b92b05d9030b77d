package s3

import (
	"context"
	"io/fs"
	"iter"
	"nar-herder/storage/bytestore"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
)

// mostPartPages bounds the requests that measure one unfinished upload, of a thousand
// parts each.
const mostPartPages = 10

// List implements [bytestore.Store]. It skips keys that are not valid names, such as
// those ending in a slash, with which some programs mark directories.
func (b *Bucket) List(ctx context.Context) iter.Seq2[bytestore.Info, error] {
	return func(yield func(bytestore.Info, error) bool) {
		if !b.listObjects(ctx, yield) {
			return
		}
		b.listUploads(ctx, time.Time{}, yield)
	}
}

// ListUnfinished implements [bytestore.Store].
func (b *Bucket) ListUnfinished(ctx context.Context, before time.Time) iter.Seq2[bytestore.Info, error] {
	return func(yield func(bytestore.Info, error) bool) { b.listUploads(ctx, before, yield) }
}

// listObjects reports whether to continue.
func (b *Bucket) listObjects(ctx context.Context, yield func(bytestore.Info, error) bool) bool {
	var next *string
	for {
		page, err := b.listPage(ctx, next)
		if err == nil && page.IsTruncated == nil {
			err = errNotS3 // not an empty bucket
		}
		if err != nil {
			yield(bytestore.Info{}, b.fail("list the objects", "", err))
			return false
		}
		for _, found := range page.Contents {
			name, ok := b.name(aws.ToString(found.Key), page.EncodingType)
			if !ok {
				continue
			}
			described := b.describe(name, aws.ToInt64(found.Size), found.LastModified, found.ETag, nil)
			if !yield(described.Info, nil) {
				return false
			}
		}
		if !aws.ToBool(page.IsTruncated) {
			return true
		}
		if next = page.NextContinuationToken; aws.ToString(next) == "" {
			yield(bytestore.Info{}, b.fail("list the objects", "", &fault{text: "the server truncated the list and sent no continuation token"}))
			return false
		}
	}
}

func (b *Bucket) listPage(ctx context.Context, next *string) (*s3.ListObjectsV2Output, error) {
	ctx, cancel := b.within(ctx)
	defer cancel()
	// XML can't represent all characters that keys may contain.
	return b.client.ListObjectsV2(ctx, &s3.ListObjectsV2Input{
		Bucket: &b.bucket, Prefix: aws.String(b.folder()), ContinuationToken: next, EncodingType: types.EncodingTypeUrl, MaxKeys: b.pageKeys,
	})
}

// name returns the name of a key; false if it isn't one.
func (b *Bucket) name(key string, encoding types.EncodingType) (string, bool) {
	if encoding == types.EncodingTypeUrl {
		decoded, err := url.QueryUnescape(key)
		if err != nil {
			return "", false
		}
		key = decoded
	}
	name, ok := strings.CutPrefix(key, b.folder())
	return name, ok && fs.ValidPath(name) && name != "." && !isTemporary(name)
}

// listUploads lists unfinished uploads; unless before is zero, only those without a part
// since then.
func (b *Bucket) listUploads(ctx context.Context, before time.Time, yield func(bytestore.Info, error) bool) {
	isRecent := func(at time.Time) bool { return !before.IsZero() && !at.Before(before) }
	var key, id *string
	for {
		page, err := b.uploadsPage(ctx, key, id)
		if err == nil && page.IsTruncated == nil {
			err = errNotS3
		}
		switch {
		case err == nil:
		case code(err) == "NotImplemented" || status(err) == http.StatusMethodNotAllowed:
			return // a server without multipart uploads
		default:
			// All objects have been listed.
			info := bytestore.Info{Temporary: true}
			if ctx.Err() == nil {
				info.Name = strings.TrimSuffix(uploadFolder, "/")
			}
			yield(info, b.fail("list the unfinished uploads", "", err))
			return
		}
		for _, found := range page.Uploads {
			name, ok := b.name(aws.ToString(found.Key), page.EncodingType)
			if !ok || isRecent(aws.ToTime(found.Initiated)) {
				continue
			}
			info := bytestore.Info{Name: temporaryName(aws.ToString(found.UploadId), name), ModTime: aws.ToTime(found.Initiated).UTC(), Temporary: true}
			gone, err := b.measure(ctx, name, aws.ToString(found.UploadId), &info)
			if err != nil && ctx.Err() != nil {
				yield(bytestore.Info{Temporary: true}, err) // without a name: it ends the listing
				return
			}
			if !gone && (err != nil || !isRecent(info.ModTime)) && !yield(info, err) {
				return
			}
		}
		if !aws.ToBool(page.IsTruncated) || aws.ToString(page.NextKeyMarker) == "" {
			return
		}
		key, id = page.NextKeyMarker, page.NextUploadIdMarker
		if page.EncodingType == types.EncodingTypeUrl {
			if decoded, err := url.QueryUnescape(*key); err == nil {
				key = &decoded
			}
		}
	}
}

func (b *Bucket) uploadsPage(ctx context.Context, key, id *string) (*s3.ListMultipartUploadsOutput, error) {
	ctx, cancel := b.within(ctx)
	defer cancel()
	return b.client.ListMultipartUploads(ctx, &s3.ListMultipartUploadsInput{
		Bucket: &b.bucket, Prefix: aws.String(b.folder()), KeyMarker: key, UploadIdMarker: id, EncodingType: types.EncodingTypeUrl,
	})
}

// measure sets the size of an unfinished upload and the time of its last part. gone is
// true if the upload has ended since.
func (b *Bucket) measure(ctx context.Context, name, id string, info *bytestore.Info) (gone bool, err error) {
	ctx, cancel := b.within(ctx)
	defer cancel()
	var next *string
	for range mostPartPages {
		page, err := b.client.ListParts(ctx, &s3.ListPartsInput{Bucket: &b.bucket, Key: aws.String(b.key(name)), UploadId: &id, PartNumberMarker: next})
		if code(err) == "NoSuchUpload" {
			return true, nil
		}
		if err != nil {
			return false, b.fail("measure the unfinished upload of", name, err)
		}
		for _, part := range page.Parts {
			info.Size += aws.ToInt64(part.Size)
			if at := aws.ToTime(part.LastModified).UTC(); at.After(info.ModTime) {
				info.ModTime = at
			}
		}
		if next = page.NextPartNumberMarker; !aws.ToBool(page.IsTruncated) || aws.ToString(next) == "" {
			break
		}
	}
	info.Usage = info.Size
	info.ModTime = info.ModTime.Truncate(1e9)
	return false, nil
}

// temporaryName returns the name of an unfinished upload. IDs may contain any characters.
func temporaryName(id, name string) string {
	return uploadFolder + url.PathEscape(id) + "/" + name
}

func parseTemporary(text string) (id, name string, ok bool) {
	id, name, ok = strings.Cut(strings.TrimPrefix(text, uploadFolder), "/")
	if !ok {
		return "", "", false
	}
	id, err := url.PathUnescape(id)
	return id, name, err == nil && id != ""
}
