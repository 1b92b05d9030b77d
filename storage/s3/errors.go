package s3

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/url"
	"strings"
	"unicode"

	"github.com/aws/aws-sdk-go-v2/aws/retry"
	"github.com/aws/smithy-go"
	smithyhttp "github.com/aws/smithy-go/transport/http"
)

// fault is an error of the server or of the network. It hides what the SDK's errors wrap,
// except for the errors of contexts: a missing credentials file must not look like a
// missing nar.
type fault struct {
	text  string
	under error
}

func (f *fault) Error() string { return f.text }
func (f *fault) Unwrap() error { return f.under }

// errNoAnswer means that a call has timed out.
var errNoAnswer = errors.New("no response in time")

// errNotS3 means that a successful response lacks a header or element that every S3
// server sends.
var errNotS3 = &fault{text: "the response is not from an S3 server: check endpoint= and the proxies on the way"}

// advice maps an S3 error code to advice for the operator.
var advice = map[string]string{
	"NoSuchBucket":                       "create the bucket, or name another one",
	"AccessDenied":                       "give these credentials the permissions that docs/bucket.md lists",
	"AllAccessDisabled":                  "give these credentials the permissions that docs/bucket.md lists",
	"InvalidAccessKeyId":                 "renew the credentials",
	"SignatureDoesNotMatch":              "the server computes another signature for this request than this program: renew the credentials if their secret key may be wrong; if it is right, look for a proxy that changes the request's host, path or headers, and compare endpoint= and region= with the provider's documentation",
	"ExpiredToken":                       "renew the credentials",
	"ExpiredTokenException":              "renew the credentials",
	"InvalidToken":                       "renew the credentials",
	"TokenRefreshRequired":               "renew the credentials",
	"XAdminUserNotFound":                 "renew the credentials",
	"RequestTimeTooSkewed":               "set the clock of this machine",
	"RequestExpired":                     "set the clock of this machine",
	"SlowDown":                           "the server is overloaded, and requests are retried later",
	"PermanentRedirect":                  "name the bucket's own region with region=",
	"TemporaryRedirect":                  "name the bucket's own region with region=",
	"AuthorizationHeaderMalformed":       "name the bucket's own region with region=",
	"IllegalLocationConstraintException": "name the bucket's own region with region=",
	"NoSuchUpload":                       "the unfinished upload was removed and must be restarted",
	"InvalidObjectState":                 "it was archived, restore it",
}

// credentialCodes are the error codes for invalid credentials. Some servers answer
// AccessDenied for unknown keys; versitygw has a code of its own.
var credentialCodes = map[string]bool{
	"AccessDenied": true, "XAdminUserNotFound": true,
	"InvalidAccessKeyId": true, "SignatureDoesNotMatch": true, "ExpiredToken": true, "ExpiredTokenException": true,
	"InvalidToken": true, "TokenRefreshRequired": true,
}

// code returns the S3 error code of an error, or "".
func code(err error) string {
	if answer := (smithy.APIError)(nil); errors.As(err, &answer) {
		return answer.ErrorCode()
	}
	return ""
}

// status returns the HTTP status of an error, or 0 if there was no response.
func status(err error) int {
	if answer := (*smithyhttp.ResponseError)(nil); errors.As(err, &answer) && answer.Response != nil && answer.Response.Response != nil {
		return answer.HTTPStatusCode()
	}
	return 0
}

// isAbsent reports whether the server has answered that the object doesn't exist. Other
// 404 responses don't mean that: a missing bucket, an error page of a proxy, or the
// response to a HEAD, which has no error code.
func isAbsent(err error) bool {
	return code(err) == "NoSuchKey" && status(err) == http.StatusNotFound
}

// explain converts an error of the SDK: absent or unknown.
func (b *Bucket) explain(tried, name string, err error) error {
	if isAbsent(err) {
		return fmt.Errorf("%s %s in %s: %w", tried, name, b, fs.ErrNotExist)
	}
	return b.fail(tried, name, err)
}

// fail converts an error of the SDK to one that means unknown.
func (b *Bucket) fail(tried, name string, err error) error {
	if name != "" {
		tried += " " + name
	}
	return fmt.Errorf("%s in %s: %w%s", tried, b, hide(err), b.checksumAdvice(err))
}

// hide converts an error of the SDK to a fault.
func hide(err error) error {
	if already := (*fault)(nil); errors.As(err, &already) {
		return already
	}
	f := &fault{text: oneLine(describe(err))}
	for _, end := range []error{context.Canceled, context.DeadlineExceeded} {
		if errors.Is(err, end) {
			f.under = end
		}
	}
	return f
}

// describe returns the text of an error of the SDK, with advice.
func describe(err error) string {
	if answer := (smithy.APIError)(nil); errors.As(err, &answer) {
		text := answer.ErrorCode()
		if message := answer.ErrorMessage(); message != "" && message != text {
			text += ": " + message
		}
		if status := status(err); status != 0 {
			text += fmt.Sprintf(" (HTTP %d)", status)
		}
		if what := advice[answer.ErrorCode()]; what != "" {
			text += ": " + what
		}
		return text
	}
	if status := status(err); status != 0 {
		return fmt.Sprintf("HTTP %d, and the response is not from an S3 server: check endpoint= and the proxies on the way", status)
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return errNoAnswer.Error()
	}
	err = bare(err)
	var unknown x509.UnknownAuthorityError
	var none x509.SystemRootsError
	if errors.As(err, &unknown) || errors.As(err, &none) {
		return err.Error() + ": no CA certificate on this machine verifies the server's: install CA certificates, and name them in SSL_CERT_DIR or SSL_CERT_FILE"
	}
	return err.Error()
}

// bare removes the SDK's wrappers.
func bare(err error) error {
	if sent := (*smithyhttp.RequestSendError)(nil); errors.As(err, &sent) {
		return bare(sent.Err)
	}
	for {
		switch err.(type) {
		case *smithy.OperationError, *smithy.CanceledError, *retry.MaxAttemptsError, *url.Error:
			err = errors.Unwrap(err)
		default:
			return err
		}
	}
}

// oneLine returns text without control characters and shortened, for a log line.
func oneLine(text string) string {
	const most = 400
	text = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(text, "?"))
	if len(text) > most {
		text = strings.ToValidUTF8(text[:most], "") + "…"
	}
	return text
}
