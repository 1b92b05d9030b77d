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

// quickly asks for objects with the SDK's signatures and without the rest of it, whose
// work for a request takes the processor about as long as all else that is done for
// a nar of 200 KB. Whatever is not the usual answer is the SDK's to find out again:
// it knows of retries, throttling, clocks that are wrong, and other places.
type quickly struct {
	b      *Bucket
	keys   aws.CredentialsProvider
	region string
	signer *signer
	// base is where objects are, without the key.
	base atomic.Pointer[url.URL]
	// rest is until when the SDK is asked at once, in nanoseconds of [time.Now]:
	// after an answer that it may have to wait or sign in another way for.
	rest atomic.Int64
}

const (
	// quickRest is for how long the SDK is asked at once.
	quickRest = 10 * time.Second
	// longestAnswer bounds an error's text.
	longestAnswer = 64 << 10
)

// errUnusual says that the SDK is to be asked.
var errUnusual = errors.New("not the usual answer")

// getObject is the SDK's. Its error is that of the SDK for what is not there, or not
// in that range or content, or errUnusual.
func (q *quickly) getObject(ctx context.Context, input *s3.GetObjectInput) (*s3.GetObjectOutput, error) {
	if time.Now().UnixNano() < q.rest.Load() {
		return nil, errUnusual
	}
	request, err := q.request(ctx, input)
	if err != nil {
		return nil, errUnusual
	}
	response, err := q.b.http.get(request)
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
	q.rest.Store(time.Now().Add(quickRest).UnixNano())
	return nil, errUnusual
}

// request signs a request.
func (q *quickly) request(ctx context.Context, input *s3.GetObjectInput) (*http.Request, error) {
	base := q.base.Load()
	if base == nil {
		// The SDK knows the rules by which hosts and paths are made.
		signed, err := q.b.presign.PresignGetObject(ctx, &s3.GetObjectInput{Bucket: input.Bucket, Key: aws.String("x")})
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
		host := base.Host // without a port that goes without saying, as the SDK signs it
		if port := base.Port(); base.Scheme == "https" && port == "443" || base.Scheme == "http" && port == "80" {
			host = strings.TrimSuffix(host, ":"+port)
		}
		base = &url.URL{Scheme: base.Scheme, Host: host, Path: plain + "/", RawPath: path + "/"}
		q.base.Store(base)
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
	keys, err := q.keys.Retrieve(ctx)
	if err != nil {
		return nil, err
	}
	q.signer.signGet(keys, request, q.region, time.Now())
	return request, nil
}

// outputOf reads the head of a good answer.
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

// answerOf is the SDK's error of an answer that is none of success, or errUnusual.
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

// summed is a body that fails in the place of its end where it is not what the server
// once took in.
type summed struct {
	io.ReadCloser
	table     *crc32.Table
	sum, want uint32
}

var errSum = errors.New("its bytes are not those that were stored, by their checksum")

func (s *summed) Read(p []byte) (int, error) {
	n, err := s.ReadCloser.Read(p)
	s.sum = crc32.Update(s.sum, s.table, p[:n])
	if err == io.EOF && s.sum != s.want {
		err = errSum
	}
	return n, err
}
