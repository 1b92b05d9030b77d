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

// fault is an error of the server, or of the way to it. It hides what the SDK's
// errors wrap, but for the end of a context: a credentials file that does not
// exist must not pass for a nar that doesn't.
type fault struct {
	text  string
	under error
}

func (f *fault) Error() string { return f.text }
func (f *fault) Unwrap() error { return f.under }

// errNoAnswer is why a call is cut off that takes too long.
var errNoAnswer = errors.New("no answer in time")

// errNotS3 says that an answer of success lacks what all S3 servers say.
var errNotS3 = &fault{text: "what came is no answer of an S3 server: check endpoint=, and what lies on the way there"}

// advice says what to do about an error code.
var advice = map[string]string{
	"NoSuchBucket":                       "create the bucket, or name another one",
	"AccessDenied":                       "give these credentials the permissions that docs/bucket.md lists",
	"AllAccessDisabled":                  "give these credentials the permissions that docs/bucket.md lists",
	"InvalidAccessKeyId":                 "renew the credentials",
	"SignatureDoesNotMatch":              "the server computes another signature for this request than this program: renew the credentials if their secret key may be wrong; if it is right, look for a proxy on the way that changes the request's host, path or headers, and compare endpoint= and region= with what the provider says",
	"ExpiredToken":                       "renew the credentials",
	"ExpiredTokenException":              "renew the credentials",
	"InvalidToken":                       "renew the credentials",
	"TokenRefreshRequired":               "renew the credentials",
	"XAdminUserNotFound":                 "renew the credentials",
	"RequestTimeTooSkewed":               "set the clock of this machine",
	"RequestExpired":                     "set the clock of this machine",
	"SlowDown":                           "the server has too much to do, it is asked again later",
	"PermanentRedirect":                  "name the bucket's own region with region=",
	"TemporaryRedirect":                  "name the bucket's own region with region=",
	"AuthorizationHeaderMalformed":       "name the bucket's own region with region=",
	"IllegalLocationConstraintException": "name the bucket's own region with region=",
	"NoSuchUpload":                       "somebody has removed the unfinished upload, it must begin anew",
	"InvalidObjectState":                 "it was archived, restore it",
}

// credentialCodes say that the credentials are no longer good, or not yet. Some
// servers say AccessDenied of keys that they don't know, versitygw has a code of
// its own.
var credentialCodes = map[string]bool{
	"AccessDenied": true, "XAdminUserNotFound": true,
	"InvalidAccessKeyId": true, "SignatureDoesNotMatch": true, "ExpiredToken": true, "ExpiredTokenException": true,
	"InvalidToken": true, "TokenRefreshRequired": true,
}

// code is the S3 error code of an error, or "" where the server gave none.
func code(err error) string {
	if answer := (smithy.APIError)(nil); errors.As(err, &answer) {
		return answer.ErrorCode()
	}
	return ""
}

// status is the HTTP status of an error, or 0 where there was no answer.
func status(err error) int {
	if answer := (*smithyhttp.ResponseError)(nil); errors.As(err, &answer) && answer.Response != nil && answer.Response.Response != nil {
		return answer.HTTPStatusCode()
	}
	return 0
}

// isAbsent says whether the server has said that there is no such object. Nothing
// else that is answered with 404 says so: not a missing bucket, nor a page of a
// proxy, nor the answer to a HEAD, which carries no code.
func isAbsent(err error) bool {
	return code(err) == "NoSuchKey" && status(err) == http.StatusNotFound
}

// explain makes an error of the SDK one of the three answers.
func (b *Bucket) explain(tried, name string, err error) error {
	if isAbsent(err) {
		return fmt.Errorf("%s %s in %s: %w", tried, name, b, fs.ErrNotExist)
	}
	return b.fail(tried, name, err)
}

// fail is explain where "not there" is no answer.
func (b *Bucket) fail(tried, name string, err error) error {
	if name != "" {
		tried += " " + name
	}
	return fmt.Errorf("%s in %s: %w%s", tried, b, hide(err), b.checksumAdvice(err))
}

// hide makes an error of the SDK a short one.
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

// describe says what happened, and what to do.
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
		return fmt.Sprintf("HTTP %d with what is no answer of an S3 server: check endpoint=, and what lies on the way there", status)
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return errNoAnswer.Error()
	}
	err = bare(err)
	var unknown x509.UnknownAuthorityError
	var none x509.SystemRootsError
	if errors.As(err, &unknown) || errors.As(err, &none) {
		return err.Error() + ": this machine has no certificate that vouches for the server: install CA certificates, and name them in SSL_CERT_DIR or SSL_CERT_FILE"
	}
	return err.Error()
}

// bare takes off what the SDK says of itself.
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

// oneLine makes a text of others fit for a log.
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
