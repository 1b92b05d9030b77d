package s3

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"hash"
	"maps"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
)

// signer signs requests. The SDK's own caches the derived key for a day by access key ID:
// if the secret of that ID changed, it would use the old one.
type signer struct {
	current atomic.Pointer[secretSigner]
	day     atomic.Pointer[dayKey]
}

type secretSigner struct {
	secret string
	*v4.Signer
}

// of returns a signer that has cached no key of another secret.
func (s *signer) of(keys aws.Credentials) *v4.Signer {
	current := s.current.Load()
	if current == nil || current.secret != keys.SecretAccessKey {
		current = &secretSigner{keys.SecretAccessKey, v4.NewSigner(func(o *v4.SignerOptions) { o.DisableURIPathEscaping = true })}
		s.current.Store(current)
	}
	return current.Signer
}

// SignHTTP implements the SDK's HTTPSignerV4. The SDK's own also signs headers that
// proxies may change, such as Accept-Encoding.
func (s *signer) SignHTTP(ctx context.Context, keys aws.Credentials, r *http.Request, hash, service, region string, at time.Time, options ...func(*v4.SignerOptions)) error {
	header, length := r.Header, r.ContentLength
	r.Header, r.ContentLength = signable(header), 0
	err := s.of(keys).SignHTTP(ctx, keys, r, hash, service, region, at, options...)
	maps.Copy(header, r.Header) // with the signature
	r.Header, r.ContentLength = header, length
	return err
}

// PresignHTTP implements the SDK's HTTPPresignerV4.
func (s *signer) PresignHTTP(ctx context.Context, keys aws.Credentials, r *http.Request, hash, service, region string, at time.Time, options ...func(*v4.SignerOptions)) (string, http.Header, error) {
	r = r.WithContext(ctx) // a copy
	r.Header, r.ContentLength = signable(r.Header), 0
	return s.of(keys).PresignHTTP(ctx, keys, r, hash, service, region, at, options...)
}

// signable returns the headers that are signed besides Host: those that Signature
// Version 4 requires and proxies must not change.
func signable(all http.Header) http.Header {
	signed := make(http.Header, len(all)+3)
	for name, values := range all {
		switch lower := strings.ToLower(name); {
		case lower == "content-type", lower == "content-md5", lower == "range", strings.HasPrefix(lower, "x-amz-"):
			signed[name] = values
		}
	}
	return signed
}

// dayKey is a signing key, which is derived from a secret for a day.
type dayKey struct {
	secret, scope string
	macs          sync.Pool // of hash.Hash, with the key
}

const (
	signingAlgorithm = "AWS4-HMAC-SHA256"
	signingTime      = "20060102T150405Z"
	signingDay       = "20060102"
	// emptySum is the SHA-256 of an empty body.
	emptySum = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
)

// signedHeaders are the signed headers of fastGet's requests besides Host, sorted.
var signedHeaders = []struct{ lower, name string }{
	{"range", "Range"},
	{"x-amz-checksum-mode", "X-Amz-Checksum-Mode"},
	{"x-amz-content-sha256", "X-Amz-Content-Sha256"},
	{"x-amz-date", "X-Amz-Date"},
	{"x-amz-security-token", "X-Amz-Security-Token"},
}

// signGet signs a GET without query or body, and its signedHeaders, as SignHTTP does, in
// less than half of the time (go test -bench SignGet): every request for a nar needs it.
// See Signature Version 4 for S3,
// https://docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-header-based-auth.html.
func (s *signer) signGet(keys aws.Credentials, r *http.Request, region string, at time.Time) {
	at = at.UTC()
	date := at.Format(signingTime)
	r.Header["X-Amz-Content-Sha256"] = []string{emptySum}
	r.Header["X-Amz-Date"] = []string{date}
	if keys.SessionToken != "" {
		r.Header["X-Amz-Security-Token"] = []string{keys.SessionToken}
	}
	text, signed := make([]byte, 0, 1024), make([]byte, 0, 128)
	text = appendAll(text, "GET\n", r.URL.EscapedPath(), "\n\nhost:", r.Host, "\n")
	signed = append(signed, "host"...)
	for _, header := range signedHeaders {
		if values := r.Header[header.name]; len(values) > 0 {
			text = appendAll(text, header.lower, ":", values[0], "\n")
			signed = appendAll(signed, ";", header.lower)
		}
	}
	text = append(append(text, '\n'), signed...)
	sum := sha256.Sum256(appendAll(text, "\n", emptySum))

	key := s.keyOf(keys.SecretAccessKey, date[:len(signingDay)]+"/"+region+"/s3/aws4_request")
	mac := key.macs.Get().(hash.Hash)
	defer key.macs.Put(mac)
	mac.Reset()
	mac.Write(hex.AppendEncode(appendAll(text[:0], signingAlgorithm, "\n", date, "\n", key.scope, "\n"), sum[:]))

	value := appendAll(text[:0], signingAlgorithm, " Credential=", keys.AccessKeyID, "/", key.scope, ", SignedHeaders=")
	value = hex.AppendEncode(appendAll(append(value, signed...), ", Signature="), mac.Sum(nil))
	r.Header["Authorization"] = []string{string(value)}
}

func appendAll(to []byte, parts ...string) []byte {
	for _, part := range parts {
		to = append(to, part...)
	}
	return to
}

// keyOf derives the key for a scope, which begins with the day.
func (s *signer) keyOf(secret, scope string) *dayKey {
	last := s.day.Load()
	if last == nil || last.secret != secret || last.scope != scope {
		key := []byte("AWS4" + secret)
		for part := range strings.SplitSeq(scope, "/") {
			mac := hmac.New(sha256.New, key)
			mac.Write([]byte(part))
			key = mac.Sum(nil)
		}
		last = &dayKey{secret: secret, scope: scope}
		last.macs.New = func() any { return hmac.New(sha256.New, key) }
		s.day.Store(last)
	}
	return last
}
