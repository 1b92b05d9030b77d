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

// checksum is what protects uploads on their way to the server, by the names that
// the parameter checksum= has for it.
type checksum string

const (
	unknownChecksum checksum = "" // the first upload finds out
	crc32cChecksum  checksum = "crc32c"
	crc32Checksum   checksum = "crc32"
	// noChecksum sends none of the headers x-amz-checksum-*, but Content-MD5.
	noChecksum checksum = "none"
)

// checksumKinds are in the order of preference.
var checksumKinds = []checksum{crc32cChecksum, crc32Checksum, noChecksum}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// table is that of a CRC32.
func (c checksum) table() *crc32.Table {
	if c == crc32cChecksum {
		return castagnoli
	}
	return crc32.IEEETable
}

// of is the checksum of content as S3 writes it.
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

// protectPart adds the checksum of a part to its request, and to what completes the
// upload later.
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

// algorithm is what a multipart upload announces; "" for nothing.
func (c checksum) algorithm() types.ChecksumAlgorithm {
	switch c {
	case crc32cChecksum:
		return types.ChecksumAlgorithmCrc32c
	case crc32Checksum:
		return types.ChecksumAlgorithmCrc32
	}
	return ""
}

// checksums is which headers the server accepts, as far as that is known.
type checksums struct {
	uploads atomic.Pointer[checksum] // nil until it is known
	// noMode says that the server refuses to be asked for checksums.
	noMode atomic.Bool
}

// known returns what protects uploads.
func (c *checksums) known() checksum {
	if kind := c.uploads.Load(); kind != nil {
		return *kind
	}
	return unknownChecksum
}

// asks says whether to ask for the checksum of what is read.
func (c *checksums) asks() bool { return c.known() != noChecksum && !c.noMode.Load() }

// protected sends content with the checksum that is known to work. While none is known,
// it tries each in turn, with trial set: send then returns only when the server has
// accepted content, or failed. The error is that of the SDK.
//
// A checksum becomes known when an upload succeeds with it after the server has refused
// all better ones, and is forgotten when the server refuses it. Another error ends the
// attempt; if no checksum is known, the next upload tries all again.
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

// forgetRefused forgets a checksum that was found to work when the server refuses it by
// name, and reports whether the server did. One that the URL names stays.
func (b *Bucket) forgetRefused(kind checksum, err error) bool {
	if b.location.checksum != unknownChecksum || !isChecksumRefusal(err) {
		return false
	}
	if known := b.checksums.uploads.Load(); known != nil && *known == kind && b.checksums.uploads.CompareAndSwap(known, nil) {
		b.log.Warn("the server refuses the checksum that it accepted before: trying again which one it accepts", "storage", b.String(), "checksum", string(kind))
	}
	return true
}

// checksumAdvice says what to do about an error, if the server refuses a checksum.
func (b *Bucket) checksumAdvice(err error) string {
	switch {
	case !isChecksumRefusal(err):
		return ""
	case b.location.checksum != unknownChecksum:
		return ": take checksum= out of the storage's URL, or name another one there"
	}
	return ": the next upload tries again which checksum the server accepts"
}

// refuses makes a request with a checksum header, and reports whether the server refuses
// that header. If the answer doesn't name a checksum, it may be about something else: the
// request is made once more.
func refuses(request func() error) (refused bool, err error) {
	err = request()
	if isRefusal(err) && !isAboutChecksum(err) {
		err = request()
	}
	return isRefusal(err), err
}

// isRefusal says whether an answer can be the refusal of a header.
func isRefusal(err error) bool {
	return code(err) == "InvalidArgument" && status(err) == http.StatusBadRequest ||
		code(err) == "NotImplemented" && status(err) == http.StatusNotImplemented
}

// isChecksumRefusal reports whether an answer is the refusal of a checksum that it names.
func isChecksumRefusal(err error) bool { return isRefusal(err) && isAboutChecksum(err) }

// isAboutChecksum says whether an answer names a checksum.
func isAboutChecksum(err error) bool {
	answer := (smithy.APIError)(nil)
	return errors.As(err, &answer) && strings.Contains(strings.ToLower(answer.ErrorMessage()), "checksum")
}

// getObject is the SDK's GetObject, on the fast path where that works. Once a server has
// refused x-amz-checksum-mode, no later request has it.
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
		b.log.Debug("the server refuses to be asked for checksums: nars are read without", "storage", b.String())
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
