package s3

import (
	"context"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
)

// signer signs requests. The SDK's own keeps what it has derived from a secret for
// a day, by the name of the key: after a secret has changed under the same name,
// it would go on with the old one.
type signer struct{ current atomic.Pointer[secretSigner] }

type secretSigner struct {
	secret string
	*v4.Signer
}

// of returns a signer that has seen no other secret.
func (s *signer) of(keys aws.Credentials) *v4.Signer {
	current := s.current.Load()
	if current == nil || current.secret != keys.SecretAccessKey {
		current = &secretSigner{keys.SecretAccessKey, v4.NewSigner(func(o *v4.SignerOptions) { o.DisableURIPathEscaping = true })}
		s.current.Store(current)
	}
	return current.Signer
}

// SignHTTP implements the SDK's HTTPSignerV4.
func (s *signer) SignHTTP(ctx context.Context, keys aws.Credentials, r *http.Request, hash, service, region string, at time.Time, options ...func(*v4.SignerOptions)) error {
	return s.of(keys).SignHTTP(ctx, keys, r, hash, service, region, at, options...)
}

// PresignHTTP implements the SDK's HTTPPresignerV4.
func (s *signer) PresignHTTP(ctx context.Context, keys aws.Credentials, r *http.Request, hash, service, region string, at time.Time, options ...func(*v4.SignerOptions)) (string, http.Header, error) {
	return s.of(keys).PresignHTTP(ctx, keys, r, hash, service, region, at, options...)
}
