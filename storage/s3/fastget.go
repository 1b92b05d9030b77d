package s3

import (
	"context"
	"encoding/base64"
	"encoding/binary"
	"encoding/xml"
	"errors"
	"hash/crc32"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/aws/smithy-go"
	"github.com/aws/smithy-go/encoding/httpbinding"
	smithyhttp "github.com/aws/smithy-go/transport/http"
)

// fastGet gets objects without the SDK, but for its credentials, its endpoint rules and
// its signature (signer.go), on connections of its own (pool.go). A front end serves
// nars of 200 KB at 0.9 of the S3 server's own speed with both, at 0.6 with
// [http.Transport] instead of pool, and at 0.4 with the SDK (go run ./cmd/bench frontend).
//
// It handles the plain cases only: 200, 206, and the errors "no such key", "range not
// satisfiable" and "precondition failed". For any other response the caller repeats the
// request with the SDK, which knows about retries, throttling, wrong clocks and
// redirects to other regions, and fastGet pauses for a while.
type fastGet struct {
	b      *Bucket
	keys   aws.CredentialsProvider
	region string
	signer *signer
	// base is the URL of an object without its key.
	base atomic.Pointer[url.URL]
	// pausedUntil is a Unix time in nanoseconds; until then, all requests go to the
	// SDK: it may have to wait, or to sign in another way.
	pausedUntil atomic.Int64
}

const (
	// fastGetPause is how long fastGet pauses after an unexpected response.
	fastGetPause = 10 * time.Second
	// longestAnswer limits the body of an error.
	longestAnswer = 64 << 10
)

// errUnusual means that the caller must use the SDK.
var errUnusual = errors.New("unexpected response")

// getObject is the SDK's GetObject. The error is errUnusual, or that of the SDK for a
// missing object, a range beyond it, or other content than If-Match names.
func (g *fastGet) getObject(ctx context.Context, input *s3.GetObjectInput) (*s3.GetObjectOutput, error) {
	if time.Now().UnixNano() < g.pausedUntil.Load() {
		return nil, errUnusual
	}
	request, err := g.request(ctx, input)
	if err != nil {
		return nil, errUnusual
	}
	response, err := g.b.http.get(request)
	if err != nil {
		return nil, errUnusual
	}
	switch response.StatusCode {
	case http.StatusOK, http.StatusPartialContent:
		output, err := outputOf(response)
		if err != nil {
			response.Body.Close()
		}
		return output, err
	case http.StatusNotFound, http.StatusRequestedRangeNotSatisfiable, http.StatusPreconditionFailed:
		defer response.Body.Close()
		return nil, answerOf(response)
	}
	response.Body.Close()
	g.pausedUntil.Store(time.Now().Add(fastGetPause).UnixNano())
	return nil, errUnusual
}

// request returns a signed request.
func (g *fastGet) request(ctx context.Context, input *s3.GetObjectInput) (*http.Request, error) {
	base := g.base.Load()
	if base == nil {
		// The SDK knows the rules for hosts and paths.
		signed, err := g.b.presign.PresignGetObject(ctx, &s3.GetObjectInput{Bucket: input.Bucket, Key: aws.String("x")})
		if err != nil {
			return nil, err
		}
		if base, err = url.Parse(signed.URL); err != nil {
			return nil, err
		}
		path, ok := strings.CutSuffix(base.EscapedPath(), "/x")
		if !ok {
			return nil, errUnusual
		}
		plain, err := url.PathUnescape(path)
		if err != nil {
			return nil, err
		}
		host := base.Host // without a default port, as the SDK signs it
		if port := base.Port(); base.Scheme == "https" && port == "443" || base.Scheme == "http" && port == "80" {
			host = strings.TrimSuffix(host, ":"+port)
		}
		base = &url.URL{Scheme: base.Scheme, Host: host, Path: plain + "/", RawPath: path + "/"}
		g.base.Store(base)
	}
	to := *base
	to.Path += *input.Key
	to.RawPath += httpbinding.EscapePath(*input.Key, false)
	header := make(http.Header, 8)
	if input.Range != nil {
		header.Set("Range", *input.Range)
	}
	if input.IfMatch != nil {
		header.Set("If-Match", *input.IfMatch)
	}
	if input.ChecksumMode != "" {
		header.Set("X-Amz-Checksum-Mode", string(input.ChecksumMode))
	}
	request := (&http.Request{Method: http.MethodGet, URL: &to, Host: to.Host, Header: header, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1}).WithContext(ctx)
	keys, err := g.keys.Retrieve(ctx)
	if err != nil {
		return nil, err
	}
	g.signer.signGet(keys, request, g.region, time.Now())
	return request, nil
}

// outputOf makes the SDK's output of a successful response.
func outputOf(response *http.Response) (*s3.GetObjectOutput, error) {
	header := response.Header
	modified, err := http.ParseTime(header.Get("Last-Modified"))
	if err != nil || response.ContentLength < 0 || len(response.TransferEncoding) > 0 {
		return nil, errUnusual
	}
	output := &s3.GetObjectOutput{
		Body: response.Body, ContentLength: &response.ContentLength, LastModified: &modified,
		Metadata: metadata(header.Get(tokenHeader), header.Get(sumHeader)),
	}
	if tag := header.Get("ETag"); tag != "" {
		output.ETag = &tag
	}
	if part := header.Get("Content-Range"); part != "" {
		output.ContentRange = &part
	}
	kind, sum := crc32cChecksum, header.Get("X-Amz-Checksum-Crc32c")
	if sum == "" {
		kind, sum = crc32Checksum, header.Get("X-Amz-Checksum-Crc32")
	}
	if response.StatusCode == http.StatusOK && sum != "" && header.Get("X-Amz-Checksum-Type") != string(types.ChecksumTypeComposite) && !strings.Contains(sum, "-") {
		want, err := base64.StdEncoding.DecodeString(sum)
		if err != nil || len(want) != 4 {
			return nil, errUnusual
		}
		output.Body = &summed{ReadCloser: response.Body, table: kind.table(), want: binary.BigEndian.Uint32(want)}
	}
	return output, nil
}

// answerOf makes the SDK's error of a failed response, or errUnusual.
func answerOf(response *http.Response) error {
	var answer struct {
		XMLName xml.Name `xml:"Error"`
		Code    string
		Message string
	}
	text, err := io.ReadAll(io.LimitReader(response.Body, longestAnswer))
	if err != nil || xml.Unmarshal(text, &answer) != nil || answer.Code == "" {
		return errUnusual
	}
	if response.StatusCode == http.StatusNotFound && answer.Code != "NoSuchKey" {
		return errUnusual
	}
	return &smithyhttp.ResponseError{
		Response: &smithyhttp.Response{Response: response},
		Err:      &smithy.GenericAPIError{Code: answer.Code, Message: answer.Message},
	}
}

// summed is a body that fails instead of ending if it doesn't have the checksum that the
// server computed when it stored the object.
type summed struct {
	io.ReadCloser
	table     *crc32.Table
	sum, want uint32
}

var errSum = errors.New("wrong checksum: the bytes are not those that were stored")

func (s *summed) Read(p []byte) (int, error) {
	n, err := s.ReadCloser.Read(p)
	s.sum = crc32.Update(s.sum, s.table, p[:n])
	if err == io.EOF && s.sum != s.want {
		err = errSum
	}
	return n, err
}
