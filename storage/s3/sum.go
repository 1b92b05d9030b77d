package s3

import (
	"cmp"
	"context"
	"crypto/md5"
	"crypto/sha256"
	"encoding/hex"
	"hash"
	"io"
	"strconv"
	"strings"
)

// sumKey is the metadata key of the SHA-256 of the object's bytes in hex, followed by a
// hyphen and the ETag that these bytes have if ETags are MD5s. The SHA-256 is valid only
// if the object has that ETag: programs that modify an object, such as s3fs, keep its
// metadata. If ETags are not MD5s, as with keys of AWS KMS, the SHA-256 is never used.
const sumKey = "nar-herder-sha256"

// metadata returns the metadata of an object.
func metadata(token, sum string) map[string]string {
	if sum == "" {
		return map[string]string{tokenKey: token}
	}
	return map[string]string{tokenKey: token, sumKey: sum}
}

// parseSum returns the [bytestore.Info.Sum] of an object with the ETag.
func parseSum(text, etag string) (sum [16]byte) {
	digest, of, _ := strings.Cut(text, "-")
	if len(digest) != 2*sha256.Size || of != etag {
		return sum
	}
	if _, err := hex.Decode(sum[:], []byte(digest[:2*len(sum)])); err != nil {
		return [16]byte{}
	}
	return sum
}

// sumOfWhole returns the value of sumKey for an object that is stored with one PUT.
func sumOfWhole(content []byte) string {
	all, tag := sha256.Sum256(content), md5.Sum(content)
	return hex.EncodeToString(all[:]) + "-" + hex.EncodeToString(tag[:])
}

// sumOfParts returns the value of sumKey for a multipart upload.
func sumOfParts(ctx context.Context, content io.Reader, size, partSize int64) (string, error) {
	all, tags := sha256.New(), md5.New()
	parts := 0
	for ; size > 0; parts++ {
		part := md5.New()
		n, err := io.CopyN(io.MultiWriter(all, part), content, min(size, partSize))
		if err := cmp.Or(err, ctx.Err()); err != nil {
			return "", err
		}
		size -= n
		tags.Write(part.Sum(nil))
	}
	return hexOf(all) + "-" + hexOf(tags) + "-" + strconv.Itoa(parts), nil
}

func hexOf(h hash.Hash) string { return hex.EncodeToString(h.Sum(nil)) }

// sumAhead returns the sum of content before the upload, as the metadata is sent first;
// "" if the content can't be read twice. If the content changes in between, the ETag
// won't match, and the sum isn't used.
func (u *upload) sumAhead(ctx context.Context, from io.Reader) string {
	content, ok := from.(io.ReaderAt)
	if !ok {
		return ""
	}
	sum, err := sumOfParts(ctx, io.NewSectionReader(content, 0, u.size), u.size, u.b.partSizeFor(u.size))
	if err != nil {
		return "" // the upload will fail with the same error
	}
	return sum
}
