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

// sumKey is the metadata in which an object has the SHA-256 of its bytes, in hex, and
// after a hyphen the ETag that an object of these bytes has where ETags are MD5s. The
// SHA-256 is believed only while that is the object's ETag: programs that write into an
// object that is there, such as s3fs, keep its metadata. Where ETags are something else,
// as with the keys of AWS KMS, it is not believed at all.
const sumKey = "nar-herder-sha256"

// metadata is that of an object.
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

// sumOfWhole is what an object has under sumKey that is put at once.
func sumOfWhole(content []byte) string {
	all, tag := sha256.Sum256(content), md5.Sum(content)
	return hex.EncodeToString(all[:]) + "-" + hex.EncodeToString(tag[:])
}

// sumOfParts is the same of one that is uploaded in parts.
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

// sumAhead finds the sum of content before it is uploaded, as the metadata is sent first.
// It is "" where the content can't be read twice. Should it change in between, the ETag
// will be another, and the sum not believed.
func (u *upload) sumAhead(ctx context.Context, from io.Reader) string {
	content, ok := from.(io.ReaderAt)
	if !ok {
		return ""
	}
	sum, err := sumOfParts(ctx, io.NewSectionReader(content, 0, u.size), u.size, u.b.partSizeFor(u.size))
	if err != nil {
		return "" // the upload will say what is wrong with it
	}
	return sum
}
