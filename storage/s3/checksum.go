package s3

import (
	"context"
	"crypto/md5"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"net/http"
	"strings"
	"sync/atomic"

	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/aws/smithy-go"
)

// checksum is the algorithm that protects uploads, by its name in the parameter
// checksum=.
type checksum string

const (
	unknownChecksum checksum = "" // the first upload detects it
	crc32cChecksum  checksum = "crc32c"
	crc32Checksum   checksum = "crc32"
	// noChecksum sends Content-MD5 instead of the headers x-amz-checksum-*.
	noChecksum checksum = "none"
)

// checksumKinds are in the order of preference.
var checksumKinds = []checksum{crc32cChecksum, crc32Checksum, noChecksum}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// table returns the CRC32 table.
func (c checksum) table() *crc32.Table {
	if c == crc32cChecksum {
		return castagnoli
	}
	return crc32.IEEETable
}

// of returns the checksum of content in base64.
func (c checksum) of(content []byte) *string {
	var sum []byte
	if c == noChecksum {
		all := md5.Sum(content)
		sum = all[:]
	} else {
		sum = binary.BigEndian.AppendUint32(nil, crc32.Checksum(content, c.table()))
	}
	text := base64.StdEncoding.EncodeToString(sum)
	return &text
}

// protectPut adds the checksum of the content.
func (c checksum) protectPut(input *s3.PutObjectInput, content []byte) {
	switch sum := c.of(content); c {
	case crc32cChecksum:
		input.ChecksumCRC32C = sum
	case crc32Checksum:
		input.ChecksumCRC32 = sum
	default:
		input.ContentMD5 = sum
	}
}

// protectPart adds the checksum of a part to its request, and to the part list of
// CompleteMultipartUpload.
func (c checksum) protectPart(input *s3.UploadPartInput, completed *types.CompletedPart, part []byte) {
	switch sum := c.of(part); c {
	case crc32cChecksum:
		input.ChecksumCRC32C, completed.ChecksumCRC32C = sum, sum
	case crc32Checksum:
		input.ChecksumCRC32, completed.ChecksumCRC32 = sum, sum
	default:
		input.ContentMD5 = sum
	}
}

// algorithm returns the checksum algorithm of CreateMultipartUpload; "" for none.
func (c checksum) algorithm() types.ChecksumAlgorithm {
	switch c {
	case crc32cChecksum:
		return types.ChecksumAlgorithmCrc32c
	case crc32Checksum:
		return types.ChecksumAlgorithmCrc32
	}
	return ""
}

// checksums records which checksum headers the server accepts.
type checksums struct {
	uploads atomic.Pointer[checksum] // nil if unknown
	// noMode is true if the server rejects x-amz-checksum-mode.
	noMode atomic.Bool
}

// known returns the checksum of uploads, or unknownChecksum.
func (c *checksums) known() checksum {
	if kind := c.uploads.Load(); kind != nil {
		return *kind
	}
	return unknownChecksum
}

// asks reports whether to request the checksum of an object that is read.
func (c *checksums) asks() bool { return c.known() != noChecksum && !c.noMode.Load() }

// protected calls send with the checksum that is known to work. If none is known, it
// tries each in turn with trial set: send must then upload content, not only create the
// upload. The error is that of the SDK.
//
// A checksum becomes known when an upload succeeds with it after the server has rejected
// all better ones. It is forgotten when the server rejects it. Any other error ends the
// attempt; if no checksum is known, the next upload tries all of them again.
func (b *Bucket) protected(send func(kind checksum, trial bool) error) error {
	if kind := b.checksums.known(); kind != unknownChecksum {
		if err := send(kind, false); !b.forgetRefused(kind, err) {
			return err
		}
	}
	var err error
	for _, kind := range checksumKinds {
		var refused bool
		if refused, err = refuses(func() error { return send(kind, true) }); refused {
			continue
		}
		if err == nil && b.checksums.uploads.CompareAndSwap(nil, &kind) {
			b.log.Info("found the checksum that the server accepts for uploads", "storage", b.String(), "checksum", string(kind))
		}
		break
	}
	return err
}

// forgetRefused reports whether err is the server's rejection of the checksum, and
// forgets a checksum that was detected. It keeps one that the URL sets.
func (b *Bucket) forgetRefused(kind checksum, err error) bool {
	if b.location.checksum != unknownChecksum || !isChecksumRefusal(err) {
		return false
	}
	if known := b.checksums.uploads.Load(); known != nil && *known == kind && b.checksums.uploads.CompareAndSwap(known, nil) {
		b.log.Warn("the server rejects the checksum that it accepted before: detecting it again", "storage", b.String(), "checksum", string(kind))
	}
	return true
}

// checksumAdvice returns advice for the operator if the server rejected a checksum.
func (b *Bucket) checksumAdvice(err error) string {
	switch {
	case !isChecksumRefusal(err):
		return ""
	case b.location.checksum != unknownChecksum:
		return ": remove checksum= from the storage's URL, or set another value"
	}
	return ": the next upload detects again which checksum the server accepts"
}

// refuses sends a request with a checksum header, and reports whether the server rejects
// that header. If the response doesn't mention checksums, it may have another cause, so
// refuses sends the request once more.
func refuses(request func() error) (refused bool, err error) {
	err = request()
	if isRefusal(err) && !isAboutChecksum(err) {
		err = request()
	}
	return isRefusal(err), err
}

// isRefusal reports whether an error can be the rejection of a header.
func isRefusal(err error) bool {
	return code(err) == "InvalidArgument" && status(err) == http.StatusBadRequest ||
		code(err) == "NotImplemented" && status(err) == http.StatusNotImplemented
}

// isChecksumRefusal reports whether an error is the rejection of a checksum.
func isChecksumRefusal(err error) bool { return isRefusal(err) && isAboutChecksum(err) }

// isAboutChecksum reports whether an error's message mentions a checksum.
func isAboutChecksum(err error) bool {
	answer := (smithy.APIError)(nil)
	return errors.As(err, &answer) && strings.Contains(strings.ToLower(answer.ErrorMessage()), "checksum")
}

// getObject is the SDK's GetObject, on the fast path if that works. Once a server has
// rejected x-amz-checksum-mode, later requests omit it.
func (b *Bucket) getObject(ctx context.Context, input *s3.GetObjectInput, options ...func(*s3.Options)) (output *s3.GetObjectOutput, err error) {
	get := func() error {
		if output, err = b.fastGet.getObject(ctx, input); errors.Is(err, errUnusual) {
			output, err = b.client.GetObject(ctx, input, options...)
		}
		return err
	}
	if input.ChecksumMode == "" {
		err = get()
		return output, err
	}
	if refused, _ := refuses(get); !refused {
		return output, err
	}
	input.ChecksumMode = ""
	if err := get(); err != nil && !isAbsent(err) {
		return nil, err
	}
	if b.checksums.noMode.CompareAndSwap(false, true) {
		b.fastGet.pausedUntil.Store(0) // the fast path works now
		b.log.Debug("the server rejects requests for checksums: nars are read without them", "storage", b.String())
	}
	return output, err
}

// parseChecksum reads the parameter.
func parseChecksum(text string) (checksum, error) {
	for _, kind := range checksumKinds {
		if text == string(kind) || text == "" {
			return checksum(text), nil
		}
	}
	return "", fmt.Errorf("checksum=%q: write crc32c, crc32 or none", text)
}
