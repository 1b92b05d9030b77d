package s3

import (
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/aws/smithy-go/logging"
)

// location is a parsed URL s3://BUCKET/PREFIX?….
type location struct {
	bucket, prefix  string // the prefix without slashes at its ends
	endpoint        string // "" is Amazon's
	region          string // "" is the environment's
	pathStyle       bool
	checksum        checksum // of uploads
	credentialsFile string
	profile         string

	sdkLog logging.Logger // the SDK's log; nil is standard error
}

// parameters are the names of the query parameters.
var parameters = []string{"checksum", "credentials", "endpoint", "path-style", "profile", "region"}

// bucketName is liberal, as old buckets and other servers have odd names.
var bucketName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{1,254}$`)

// String returns the location without query parameters.
func (l location) String() string {
	if l.prefix == "" {
		return "s3://" + l.bucket
	}
	return "s3://" + l.bucket + "/" + l.prefix
}

// parse parses a URL. Errors don't repeat it, as it may contain a password by mistake.
func parse(text string) (location, error) {
	l, err := parseParts(text)
	if err != nil {
		return location{}, fmt.Errorf("storage on S3: %w: write s3://BUCKET/PREFIX?endpoint=URL&region=REGION&credentials=FILE", err)
	}
	return l, nil
}

// Validate checks the syntax of a URL for [Open].
func Validate(url string) error {
	_, err := parse(url)
	return err
}

func parseParts(text string) (l location, err error) {
	u, err := url.Parse(text)
	switch {
	case err != nil:
		return l, errors.New("not a valid URL")
	case u.Scheme != "s3":
		return l, errors.New("the URL does not begin with s3://")
	case u.User != nil:
		return l, errors.New("keys don't belong in the URL, where others can read them: put them into a file, and name it with credentials=")
	case u.Host == "":
		return l, errors.New("the URL has no bucket")
	case !bucketName.MatchString(u.Host):
		return l, fmt.Errorf("invalid bucket name %q", u.Host)
	case u.Fragment != "":
		return l, errors.New("the URL has a fragment: write # as %23")
	}
	l.bucket = u.Host
	l.prefix = strings.Trim(u.Path, "/")
	if l.prefix != "" && (!fs.ValidPath(l.prefix) || l.prefix == ".") {
		return l, fmt.Errorf("invalid prefix %q: empty parts, . and .. are not allowed", l.prefix)
	}
	values, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return l, errors.New("the query is not NAME=VALUE&NAME=VALUE")
	}
	for name, value := range values {
		if !slices.Contains(parameters, name) {
			return l, fmt.Errorf("unknown parameter %q: known are %s", name, strings.Join(parameters, ", "))
		}
		if len(value) > 1 || value[0] == "" {
			return l, fmt.Errorf("parameter %s must be given once, with a value", name)
		}
	}
	l.region = values.Get("region")
	l.credentialsFile = values.Get("credentials")
	l.profile = values.Get("profile")
	if l.endpoint, err = parseEndpoint(values.Get("endpoint")); err != nil {
		return l, err
	}
	if l.checksum, err = parseChecksum(values.Get("checksum")); err != nil {
		return l, err
	}
	// Few servers other than Amazon's have a host name for each bucket.
	l.pathStyle = l.endpoint != ""
	if style := values.Get("path-style"); style != "" {
		if l.pathStyle, err = strconv.ParseBool(style); err != nil {
			return l, fmt.Errorf("path-style=%q: write true or false", style)
		}
	}
	return l, nil
}

func parseEndpoint(text string) (string, error) {
	if text == "" {
		return "", nil
	}
	u, err := url.Parse(text)
	switch {
	case err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "":
		return "", errors.New("invalid endpoint: want https://HOST or http://HOST:PORT")
	case u.User != nil:
		return "", errors.New("keys don't belong in the endpoint: put them into a file, and name it with credentials=")
	case u.RawQuery != "" || u.ForceQuery || u.Fragment != "":
		return "", errors.New("the endpoint has more than https://HOST:PORT/PATH: remove the query and fragment, or write & as %26 within a path")
	}
	return strings.TrimSuffix(u.String(), "/"), nil
}
