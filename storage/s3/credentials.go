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
	// rereadAfter is how old credentials may be: files are edited, roles change.
	rereadAfter = 5 * time.Minute
	// rereadPause is how long credentials that the server refuses are not read
	// again, so that a fault does not become a storm on whoever issues them.
	rereadPause = time.Second
	// changedFor is how long after a change a refusal is taken to be about the
	// credentials before it.
	changedFor = 30 * time.Second
	// expiryWindow is how long before their end credentials are read again.
	expiryWindow = 2 * time.Minute
	// readTimeout is how long reading them may take: some come over a network.
	readTimeout = 15 * time.Second
)

// credentials are read where the SDK looks for them, and read again.
type credentials struct {
	load func(context.Context) (aws.Credentials, error)
	now  func() time.Time

	lock      chan struct{} // a mutex that a context can leave
	got       aws.Credentials
	readAt    time.Time
	changedAt time.Time // when they last became others
}

func newCredentials(l location, now func() time.Time) *credentials {
	return &credentials{load: func(ctx context.Context) (aws.Credentials, error) { return l.loadCredentials(ctx) }, now: now, lock: make(chan struct{}, 1)}
}

// loadConfig reads the SDK's files and environment. It opens no connections.
func (l location) loadConfig(ctx context.Context) (aws.Config, error) {
	options := []func(*config.LoadOptions) error{}
	profile := l.profile
	if l.credentialsFile != "" {
		options = append(options, config.WithSharedCredentialsFiles([]string{l.credentialsFile}))
		if profile == "" {
			// Named, it goes before the environment's.
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
	from := "where the AWS SDK looks for them"
	if l.credentialsFile != "" {
		from = "in " + l.credentialsFile
	}
	return &fault{text: oneLine(fmt.Sprintf("no credentials found %s: %v: name a file that has them with credentials=FILE", from, err))}
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
	// A file that is just being written is no reason to stop: those from before
	// may do, and if not, the server says so.
	return c.got, nil
}

// renewed is called when the server has refused credentials. It reads them again,
// and says whether they are others now.
func (c *credentials) renewed() bool {
	if c.acquire(context.Background()) != nil {
		return false
	}
	defer c.release()
	if !c.changedAt.IsZero() && c.now().Sub(c.changedAt) < changedFor {
		return true // another request has found them
	}
	if c.now().Sub(c.readAt) < rereadPause {
		return false
	}
	before := c.changedAt
	return c.reread(context.Background()) == nil && c.changedAt != before
}

// reread is called with the lock held. One caller who leaves does not end it for
// the others.
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

// retryer repeats requests, later and later, at random times, and fewer of them
// while many fail. The SDK's adaptive one would also hold back first attempts, at
// times to one in two seconds, and so all clients for the one who asked too much.
func (c *credentials) retryer(longest time.Duration) aws.Retryer {
	return retry.NewStandard(func(o *retry.StandardOptions) {
		o.MaxAttempts = attempts
		o.MaxBackoff = longest
		renewed := retry.IsErrorRetryableFunc(func(err error) aws.Ternary {
			if !credentialCodes[code(err)] {
				return aws.UnknownTernary
			}
			return aws.BoolTernary(c.renewed())
		})
		o.Retryables = append([]retry.IsErrorRetryable{renewed}, o.Retryables...)
	})
}
