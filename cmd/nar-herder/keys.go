package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"syscall"

	"github.com/prometheus/client_golang/prometheus"

	"nar-herder/narinfo"
	"nar-herder/narinfo/signing"
	"nar-herder/storage/index"
)

// keyOptions are the options of commands that verify signatures. The files are read once, at
// the start.
type keyOptions struct {
	ACL           []string `group:"keys" name:"acl" sep:"none" placeholder:"FILE" help:"List of authorized keys, such as Guix's /etc/guix/acl. Refuse narinfos that none of these keys has signed. May be repeated."`
	AuthorizedKey []string `group:"keys" sep:"none" placeholder:"FILE" help:"Public key to authorize, such as signing-key.pub, in addition to those of --acl. May be repeated."`
}

// keys returns the authorized keys; nil without the options.
func (o *keyOptions) keys() (*signing.Keys, error) {
	all, err := addKeys(nil, "acl", o.ACL)
	if err != nil {
		return nil, err
	}
	return addKeys(all, "authorized-key", o.AuthorizedKey)
}

// serverKeyOptions are those of a server.
type serverKeyOptions struct {
	keyOptions `embed:""`
	MirrorKey  []string `group:"keys" sep:"none" placeholder:"FILE" help:"Public key or list of keys of --mirror. Refuse narinfos from there that none of these keys has signed. May be repeated (default: the keys of --acl and --authorized-key)."`
	SigningKey []string `group:"keys" sep:"none" placeholder:"FILE" help:"Public key of the narinfos' signatures, served at /signing-key.pub. May be repeated: the second is served at /signing-key-2.pub."`
}

// serverKeys are the keys of a server.
type serverKeys struct {
	// authorized may sign items; nil for any key.
	authorized *signing.Keys
	// mirror may sign those of the mirrored instance; nil for any key.
	mirror *signing.Keys
	// published are served to clients.
	published []string
}

func (o *serverKeyOptions) read() (keys serverKeys, err error) {
	if keys.authorized, err = o.keys(); err != nil {
		return keys, err
	}
	if keys.mirror, err = addKeys(nil, "mirror-key", o.MirrorKey); err != nil {
		return keys, err
	}
	if keys.mirror == nil {
		keys.mirror = keys.authorized
	} else if keys.authorized != nil {
		keys.authorized.Add(keys.mirror)
	}
	for _, name := range o.SigningKey {
		key, err := readKeys("signing-key", name)
		if err != nil {
			return keys, err
		}
		if key.Len() != 1 {
			return keys, usagef("--signing-key=%s: it has %d keys, and clients can authorize only one from a file: name the files of single keys", name, key.Len())
		}
		keys.published = append(keys.published, key.All()...)
	}
	return keys, nil
}

// all returns the keys that may sign items, or with --mirror-key only, those of the mirrored
// instance: the server gets narinfos from other instances alone. It returns nil for any key.
func (k *serverKeys) all() *signing.Keys { return cmp.Or(k.authorized, k.mirror) }

// count returns the number of keys that may sign items.
func (k *serverKeys) count() int {
	if keys := k.all(); keys != nil {
		return keys.Len()
	}
	return 0
}

// metric returns a gauge of the number of authorized keys.
func (k *serverKeys) metric() prometheus.Collector {
	gauge := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "narherder_authorized_keys", Help: "Keys that are authorized to sign narinfos; 0 if any key is.",
	})
	gauge.Set(float64(k.count()))
	return gauge
}

// signedSample is the number of the newest items of which the published keys should have signed
// some.
const signedSample = 100

// warn logs what is doubtful about the keys.
func (k *serverKeys) warn(ctx context.Context, x *index.Index, log *slog.Logger) {
	if k.count() == 0 {
		log.Warn("no keys are authorized, so narinfos with the signature of any key are accepted: add --acl=/etc/guix/acl or --authorized-key=FILE")
	}
	if len(k.published) == 0 {
		return
	}
	items, err := x.Newest(ctx, signedSample)
	if err != nil {
		log.Warn("can't compare --signing-key with the signatures of the newest items", "error", err)
		return
	}
	for _, item := range items {
		n, err := narinfo.Parse(item.Text)
		if err != nil {
			continue
		}
		if key, err := n.SigningKey(); err == nil && slices.Contains(k.published, key) {
			return
		}
	}
	if len(items) > 0 {
		log.Warn("--signing-key has signed none of the newest items, so clients that authorize it refuse these: name the key that signs them", "items", len(items))
	}
}

// addKeys reads the keys of files, and adds them to others, which may be nil.
func addKeys(to *signing.Keys, option string, names []string) (*signing.Keys, error) {
	for _, name := range names {
		keys, err := readKeys(option, name)
		if err != nil {
			return nil, err
		}
		if to == nil {
			to = keys
		} else {
			to.Add(keys)
		}
	}
	return to, nil
}

// keyFiles says what the options' files must be.
var keyFiles = map[string]string{
	"acl":            `a file that begins with "(acl", such as /etc/guix/acl`,
	"authorized-key": `a file that begins with "(public-key", such as /etc/guix/signing-key.pub`,
	"mirror-key":     `a file that begins with "(public-key", such as signing-key.pub of --mirror`,
	"signing-key":    `a file that begins with "(public-key", such as /etc/guix/signing-key.pub`,
}

// readKeys reads the file of an option. It has at least one key.
func readKeys(option, name string) (*signing.Keys, error) {
	text, err := readKeyFile(name)
	if err != nil {
		return nil, fmt.Errorf("--%s=%s: %w: name %s", option, name, err, keyFiles[option])
	}
	keys, err := signing.ParseKeys(text)
	if err == nil && keys.Len() == 0 {
		err = errors.New("it has no key that is authorized for imports")
	}
	if err != nil {
		return nil, usagef("--%s=%s: %w: name %s", option, name, err, keyFiles[option])
	}
	return keys, nil
}

// readKeyFile reads a file of keys.
func readKeyFile(name string) ([]byte, error) {
	// Without O_NONBLOCK, opening a pipe would block.
	file, err := os.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, errors.Unwrap(err) // without the name
	}
	defer file.Close()
	if info, err := file.Stat(); err != nil {
		return nil, err
	} else if !info.Mode().IsRegular() {
		return nil, errors.New("not a regular file")
	}
	text, err := io.ReadAll(io.LimitReader(file, signing.MaxKeysSize+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("read it: %w", err)
	case len(text) > signing.MaxKeysSize:
		return nil, fmt.Errorf("over %s", byteCount(signing.MaxKeysSize))
	case len(text) == 0:
		return nil, errors.New("the file is empty")
	}
	return text, nil
}
