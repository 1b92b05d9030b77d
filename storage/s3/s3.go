// Package s3 stores nars in a bucket of Amazon S3 or a compatible server, each under the
// path in its narinfo's URL. It is the backend of --storage=s3://BUCKET/PREFIX.
//
// It trusts unambiguous responses only: an object is absent if the error code is
// NoSuchKey. Any other failure means unknown.
package s3

import (
	"context"
	"fmt"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awsmiddleware "github.com/aws/aws-sdk-go-v2/aws/middleware"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/smithy-go/logging"
	"github.com/aws/smithy-go/middleware"
	smithyhttp "github.com/aws/smithy-go/transport/http"
	"golang.org/x/sync/semaphore"

	"nar-herder/internal/pace"
	"nar-herder/storage/bytestore"
)

const (
	// attempts is how often a request is tried, with random pauses of at most 20 s in
	// all.
	attempts    = 5
	longestWait = 5 * time.Second
	// callTimeout bounds a call with all its attempts, up to the head of the
	// response.
	callTimeout = 90 * time.Second
	// concurrency is how many concurrent calls suit a server.
	concurrency = 32
	// longestKey is S3's limit for the length of a key in bytes.
	longestKey = 1024
	// longestPresigned is S3's limit for the lifetime of a URL.
	longestPresigned = 7 * 24 * time.Hour
	// uploadFolder begins the names of unfinished uploads; the upload's ID and the
	// name of the nar follow.
	uploadFolder = ".nar-herder-upload/"
	// tokenKey is the metadata key of a random word that identifies the upload.
	tokenKey = "nar-herder-token"
)

// tokenHeader and sumHeader are the response headers for the metadata.
var (
	tokenHeader = http.CanonicalHeaderKey("X-Amz-Meta-" + tokenKey)
	sumHeader   = http.CanonicalHeaderKey("X-Amz-Meta-" + sumKey)
)

// Options are optional settings for [Open].
type Options struct {
	// Log receives messages that no error carries; nil is [slog.Default].
	Log *slog.Logger
	// Now is the clock for the age of credentials; nil is the system's.
	Now func() time.Time
	// HTTPTransport sends the requests; nil is a transport with timeouts.
	HTTPTransport http.RoundTripper

	// For tests; 0 is the default.
	partSize    int64
	pageKeys    int32
	longestWait time.Duration
	callTimeout time.Duration
	progress    time.Duration
}

// Bucket is a [bytestore.Store].
type Bucket struct {
	bytestore.Defaults

	location
	log       *slog.Logger
	client    *s3.Client
	http      *client
	presign   *s3.PresignClient
	fastGet   *fastGet
	checksums checksums
	partSize  int64  // of all but the largest uploads
	pageKeys  *int32 // of a listing's page; nil is the server's default

	longestWait, callTimeout, progress time.Duration

	// staged bounds the bytes in memory that wait for Commit, and parts those that
	// are being sent.
	staged, parts *semaphore.Weighted
	buffers       sync.Pool // of *[]byte with partSize bytes
}

var _ bytestore.Store = (*Bucket)(nil)

// Open opens a bucket as a store. It sends no request: Probe checks whether the bucket
// exists and is readable.
func Open(ctx context.Context, url string, options Options) (*Bucket, error) {
	l, err := parse(url)
	if err != nil {
		return nil, err
	}
	if options.Now == nil {
		options.Now = time.Now
	}
	if options.Log == nil {
		options.Log = slog.Default()
	}
	// Only for debugging: failures are returned as errors.
	l.sdkLog = logging.LoggerFunc(func(_ logging.Classification, format string, arguments ...any) {
		options.Log.Debug("message of the AWS SDK", "storage", l.String(), "text", oneLine(fmt.Sprintf(format, arguments...)))
	})
	loaded, err := l.loadConfig(ctx)
	if err != nil {
		return nil, fmt.Errorf("storage %s: %w", l, l.noCredentials(err))
	}
	keys := newCredentials(l, options.Now)
	if l.credentialsFile != "" {
		// Report a mistyped name early.
		if _, err := keys.Retrieve(ctx); err != nil {
			return nil, fmt.Errorf("storage %s: %w", l, err)
		}
	}
	b := &Bucket{
		location: l, log: options.Log, http: newClient(),
		partSize: orUsual(options.partSize, smallestPart), longestWait: orUsual(options.longestWait, longestWait),
		callTimeout: orUsual(options.callTimeout, callTimeout), progress: orUsual(options.progress, progressTimeout),
		staged: semaphore.NewWeighted(mostStaged), parts: semaphore.NewWeighted(mostParts),
	}
	if l.checksum != unknownChecksum {
		b.checksums.uploads.Store(&l.checksum)
	}
	if options.pageKeys != 0 {
		b.pageKeys = &options.pageKeys
	}
	if options.HTTPTransport != nil {
		b.http = &client{quick: options.HTTPTransport, patient: options.HTTPTransport, metrics: newMetrics()}
	}
	sign := new(signer)
	b.client = s3.NewFromConfig(loaded, func(o *s3.Options) {
		if o.Region == "" || l.endpoint != "" && l.region == "" {
			o.Region = "us-east-1"
		}
		if l.endpoint != "" {
			o.BaseEndpoint = aws.String(l.endpoint)
		}
		o.UsePathStyle = l.pathStyle
		o.HTTPClient = b.http
		o.Credentials = keys
		o.HTTPSignerV4 = sign
		o.Retryer = keys.retryer(b.longestWait)
		o.RetryMaxAttempts = 0
		// This package sends checksums as headers: many servers don't know the
		// SDK's trailers.
		o.RequestChecksumCalculation = aws.RequestChecksumCalculationWhenRequired
		// get requests the checksums of responses.
		o.ResponseChecksumValidation = aws.ResponseChecksumValidationWhenRequired
		o.DisableLogOutputChecksumValidationSkipped = true
		o.Logger = l.sdkLog
		o.DisableS3ExpressSessionAuth = aws.Bool(true)
	})
	b.presign = s3.NewPresignClient(b.client, func(o *s3.PresignOptions) { o.Presigner = sign })
	b.fastGet = &fastGet{b: b, keys: keys, region: b.client.Options().Region, signer: sign}
	b.buffers.New = func() any { buffer := make([]byte, b.partSize); return &buffer }
	return b, nil
}

func orUsual[T int64 | time.Duration](value, usual T) T {
	if value == 0 {
		return usual
	}
	return value
}

// Close closes idle connections. Open readers remain usable.
func (b *Bucket) Close() error {
	b.http.close()
	return nil
}

// IsRemote implements [bytestore.Store].
func (b *Bucket) IsRemote() bool { return true }

// Concurrency implements [bytestore.Store].
func (b *Bucket) Concurrency() int { return concurrency }

// check rejects invalid names, and hides unfinished uploads.
func (b *Bucket) check(tried, name string) error {
	if !fs.ValidPath(name) || name == "." {
		return fmt.Errorf("%s %q in %s: not a name for a nar: %w", tried, name, b, fs.ErrInvalid)
	}
	if isTemporary(name) || len(b.key(name)) > longestKey {
		return fmt.Errorf("%s %s in %s: %w", tried, name, b, fs.ErrNotExist)
	}
	return nil
}

func isTemporary(name string) bool { return strings.HasPrefix(name, uploadFolder) }

// key returns the object's key.
func (b *Bucket) key(name string) string { return b.folder() + name }

// folder returns the common prefix of all keys. It ends in a slash unless it is empty, so
// that prefix "nar" doesn't match "nar2".
func (b *Bucket) folder() string {
	if b.prefix == "" {
		return ""
	}
	return b.prefix + "/"
}

// within bounds a call up to the head of its response.
func (b *Bucket) within(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, b.callTimeout, errNoAnswer)
}

// Stat implements [bytestore.Store].
func (b *Bucket) Stat(ctx context.Context, name string) (bytestore.Info, error) {
	if err := b.check("look for", name); err != nil {
		return bytestore.Info{}, err
	}
	found, err := b.look(ctx, name)
	if err != nil {
		return bytestore.Info{}, b.explain("look for", name, err)
	}
	return found.Info, nil
}

// Flush implements [bytestore.Store]: objects are durable.
func (b *Bucket) Flush(ctx context.Context, name string) error {
	_, err := b.Stat(ctx, name)
	return err
}

// Sync implements [bytestore.Store]. Whatever S3 has acknowledged is durable already.
func (b *Bucket) Sync(context.Context) error { return nil }

// Probe implements [bytestore.Store]. It requests an object that doesn't exist: the
// response NoSuchKey requires an existing bucket and valid credentials.
func (b *Bucket) Probe(ctx context.Context) error {
	ctx, cancel := b.within(ctx)
	defer cancel()
	body, _, err := b.get(ctx, "nar-herder-probe-"+randomWord(), 0, 1, "")
	if err == nil {
		body.Close()
		return &fault{text: b.String() + " returns an object that doesn't exist: check endpoint= and the proxies on the way"}
	}
	if isAbsent(err) {
		return nil
	}
	return b.fail("probe", "", err)
}

// Remove implements [bytestore.Store].
func (b *Bucket) Remove(ctx context.Context, name string) error {
	if !fs.ValidPath(name) || name == "." {
		return fmt.Errorf("remove %q in %s: not a name for a nar: %w", name, b, fs.ErrInvalid)
	}
	ctx, cancel := b.within(ctx)
	defer cancel()
	if isTemporary(name) {
		id, of, ok := parseTemporary(name)
		if !ok {
			return nil
		}
		_, err := b.abort(ctx, id, of)
		return err
	}
	if len(b.key(name)) > longestKey {
		return nil
	}
	output, err := b.client.DeleteObject(ctx, &s3.DeleteObjectInput{Bucket: &b.bucket, Key: aws.String(b.key(name))})
	if err != nil && !isAbsent(err) {
		return b.fail("remove", name, err)
	}
	// A proxy's page may have status 200.
	if err == nil && hasBody(output.ResultMetadata) {
		return b.fail("remove", name, errNotS3)
	}
	return nil
}

// hasBody reports whether a response that should be empty has a body.
func hasBody(metadata middleware.Metadata) bool {
	raw, ok := awsmiddleware.GetRawResponse(metadata).(*smithyhttp.Response)
	return ok && raw.StatusCode != http.StatusNoContent && raw.ContentLength != 0
}

// Presign implements [bytestore.Store]. The URL expires with the credentials that signed
// it, if that is earlier.
func (b *Bucket) Presign(ctx context.Context, name string, lifetime time.Duration) (string, error) {
	if err := b.check("make a URL of", name); err != nil {
		return "", err
	}
	if lifetime <= 0 {
		return "", fmt.Errorf("make a URL of %s in %s: lifetime %v must be positive", name, b, lifetime)
	}
	ctx, cancel := b.within(ctx)
	defer cancel()
	request, err := b.presign.PresignGetObject(ctx, &s3.GetObjectInput{Bucket: &b.bucket, Key: aws.String(b.key(name))},
		s3.WithPresignExpires(min(lifetime, longestPresigned)))
	if err != nil {
		return "", b.fail("make a URL of", name, err)
	}
	return request.URL, nil
}

// unsigned omits the body from a request's signature unless the URL is plain HTTP: TLS and
// the checksum protect it, and a SHA-256 would take longer than everything else.
func (b *Bucket) unsigned(o *s3.Options) {
	if !strings.HasPrefix(b.endpoint, "http:") {
		o.APIOptions = append(o.APIOptions, v4.SwapComputePayloadSHA256ForUnsignedPayloadMiddleware)
	}
}

// pause waits a random time before the next attempt, longer with each.
func (b *Bucket) pause(ctx context.Context, attempt int) error {
	return pace.Sleep(ctx, rand.N(min(b.longestWait, 200*time.Millisecond<<attempt))+time.Millisecond)
}
