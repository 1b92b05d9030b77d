package s3

import (
	"context"
	"fmt"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	"github.com/aws/aws-sdk-go-v2/config"
)

const (
	// rereadAfter is the age at which credentials are read again: files are edited,
	// roles change.
	rereadAfter = 5 * time.Minute
	// rereadPause is the minimum time between two reads, so that rejected credentials
	// don't flood their issuer with requests.
	rereadPause = 5 * time.Second
	// changedFor is how long after a change a rejection is attributed to the old
	// credentials.
	changedFor = 30 * time.Second
	// expiryWindow is how long before their expiry credentials are read again.
	expiryWindow = 2 * time.Minute
	// readTimeout bounds a read: some credentials come over a network.
	readTimeout = 15 * time.Second
)

// credentials reads credentials from the SDK's sources, and refreshes them.
type credentials struct {
	load func(context.Context) (aws.Credentials, error)
	now  func() time.Time

	lock      chan struct{} // a mutex; waiting for it honours the context
	got       aws.Credentials
	readAt    time.Time
	changedAt time.Time // when a read last returned different ones
}

func newCredentials(l location, now func() time.Time) *credentials {
	return &credentials{load: func(ctx context.Context) (aws.Credentials, error) { return l.loadCredentials(ctx) }, now: now, lock: make(chan struct{}, 1)}
}

// loadConfig reads the SDK's files and environment, without opening connections.
func (l location) loadConfig(ctx context.Context) (aws.Config, error) {
	options := []func(*config.LoadOptions) error{config.WithLogger(l.sdkLog)}
	profile := l.profile
	if l.credentialsFile != "" {
		options = append(options, config.WithSharedCredentialsFiles([]string{l.credentialsFile}))
		if profile == "" {
			// An explicit profile overrides the environment's.
			profile = "default"
		}
	}
	if profile != "" {
		options = append(options, config.WithSharedConfigProfile(profile))
	}
	if l.region != "" {
		options = append(options, config.WithRegion(l.region))
	}
	return config.LoadDefaultConfig(ctx, options...)
}

func (l location) loadCredentials(ctx context.Context) (aws.Credentials, error) {
	loaded, err := l.loadConfig(ctx)
	if err != nil {
		return aws.Credentials{}, l.noCredentials(err)
	}
	got, err := loaded.Credentials.Retrieve(ctx)
	if err != nil {
		return aws.Credentials{}, l.noCredentials(err)
	}
	return got, nil
}

func (l location) noCredentials(err error) error {
	from := "in the AWS SDK's usual sources"
	if l.credentialsFile != "" {
		from = "in " + l.credentialsFile
	}
	return &fault{text: oneLine(fmt.Sprintf("no credentials found %s: %v: name their file with credentials=FILE", from, err))}
}

// Retrieve implements [aws.CredentialsProvider].
func (c *credentials) Retrieve(ctx context.Context) (aws.Credentials, error) {
	if err := c.acquire(ctx); err != nil {
		return aws.Credentials{}, err
	}
	defer c.release()
	age := c.now().Sub(c.readAt)
	ending := c.got.CanExpire && c.now().After(c.got.Expires.Add(-expiryWindow)) && age > rereadPause
	if c.got.HasKeys() && age < rereadAfter && age >= 0 && !ending {
		return c.got, nil
	}
	if err := c.reread(ctx); err != nil && (!c.got.HasKeys() || c.got.CanExpire && c.now().After(c.got.Expires)) {
		return aws.Credentials{}, err
	}
	// The file may be incomplete while it is being written: use the old credentials
	// until the server rejects them.
	return c.got, nil
}

// renewed reads the credentials again after the server has rejected them, and reports
// whether they have changed.
func (c *credentials) renewed() bool {
	if c.acquire(context.Background()) != nil {
		return false
	}
	defer c.release()
	if !c.changedAt.IsZero() && c.now().Sub(c.changedAt) < changedFor {
		return true // another request has read them
	}
	if c.now().Sub(c.readAt) < rereadPause {
		return false
	}
	before := c.changedAt
	return c.reread(context.Background()) == nil && c.changedAt != before
}

// reread reads the credentials. The lock is held. It ignores the caller's cancellation,
// as other callers wait for the result.
func (c *credentials) reread(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), readTimeout)
	defer cancel()
	got, err := c.load(ctx)
	c.readAt = c.now()
	if err != nil {
		return err
	}
	if c.got.HasKeys() && (got.AccessKeyID != c.got.AccessKeyID || got.SecretAccessKey != c.got.SecretAccessKey || got.SessionToken != c.got.SessionToken) {
		c.changedAt = c.now()
	}
	c.got = got
	return nil
}

func (c *credentials) acquire(ctx context.Context) error {
	select {
	case c.lock <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (c *credentials) release() { <-c.lock }

// retryer repeats requests with exponential back-off and jitter, and retries less while
// many requests fail. The SDK's adaptive retryer would also delay first attempts, at
// times to one in two seconds, which would slow down all clients because of one.
func (c *credentials) retryer(longest time.Duration) aws.Retryer {
	return retry.NewStandard(func(o *retry.StandardOptions) {
		o.MaxAttempts = attempts
		o.MaxBackoff = longest
		renewed := retry.IsErrorRetryableFunc(func(err error) aws.Ternary {
			if skewed := (retry.RetryableError{}).IsErrorRetryable(err); skewed != aws.UnknownTernary || !credentialCodes[code(err)] {
				return aws.UnknownTernary
			}
			return aws.BoolTernary(c.renewed())
		})
		o.Retryables = append([]retry.IsErrorRetryable{renewed}, o.Retryables...)
	})
}
