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

// location is what a URL s3://BUCKET/PREFIX?… says.
type location struct {
	bucket, prefix  string // the prefix without slashes at its ends
	endpoint        string // "" is Amazon's
	region          string // "" is what the environment says
	pathStyle       bool
	checksum        checksum // of uploads
	credentialsFile string
	profile         string

	sdkLog logging.Logger // takes what the SDK has to say; nil is standard error
}

// parameters are what may follow the question mark.
var parameters = []string{"checksum", "credentials", "endpoint", "path-style", "profile", "region"}

// bucketName is liberal, as old buckets and other servers have odd names.
var bucketName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{1,254}$`)

// String is the location without what only says how to get there.
func (l location) String() string {
	if l.prefix == "" {
		return "s3://" + l.bucket
	}
	return "s3://" + l.bucket + "/" + l.prefix
}

// parse reads a URL. Errors don't repeat it, as passwords may stand in it where
// they don't belong.
func parse(text string) (location, error) {
	l, err := parseParts(text)
	if err != nil {
		return location{}, fmt.Errorf("storage on S3: %w: write s3://BUCKET/PREFIX?endpoint=URL&region=REGION&credentials=FILE", err)
	}
	return l, nil
}

// Validate returns what is wrong with a URL that [Open] would refuse, whatever the
// server says.
func Validate(url string) error {
	_, err := parse(url)
	return err
}

func parseParts(text string) (l location, err error) {
	u, err := url.Parse(text)
	switch {
	case err != nil:
		return l, errors.New("this is no URL")
	case u.Scheme != "s3":
		return l, errors.New("the URL does not begin with s3://")
	case u.User != nil:
		return l, errors.New("keys don't belong into the URL, where others can read them: put them into a file, and name it with credentials=")
	case u.Host == "":
		return l, errors.New("the URL names no bucket")
	case !bucketName.MatchString(u.Host):
		return l, fmt.Errorf("%q is no name of a bucket", u.Host)
	case u.Fragment != "":
		return l, errors.New("what follows a # begins nothing here: write it as %23")
	}
	l.bucket = u.Host
	l.prefix = strings.Trim(u.Path, "/")
	if l.prefix != "" && (!fs.ValidPath(l.prefix) || l.prefix == ".") {
		return l, fmt.Errorf("%q is no prefix: empty parts, . and .. lead nowhere", l.prefix)
	}
	values, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return l, errors.New("what follows the ? is not NAME=VALUE&NAME=VALUE")
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
	// Few servers other than Amazon's have a name for each bucket.
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
		return "", errors.New("the endpoint is no URL https://HOST or http://HOST:PORT")
	case u.User != nil:
		return "", errors.New("keys don't belong into the endpoint: put them into a file, and name it with credentials=")
	case u.RawQuery != "" || u.ForceQuery || u.Fragment != "":
		return "", errors.New("the endpoint has more than https://HOST:PORT/PATH: take off what follows, or write & as %26 within a path")
	}
	return strings.TrimSuffix(u.String(), "/"), nil
}
