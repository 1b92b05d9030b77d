// Package keypair keeps the TLS certificate and key of the server, and reloads them when their files
// change.
package keypair

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"nar-herder/internal/logonce"
)

const (
	// Interval is how often the files are compared with those that were read.
	Interval = time.Second
	// expirySoon is how long before its expiry a certificate causes warnings. Those of
	// ACME are renewed a month before, or after two thirds of a short life.
	expirySoon = 14 * 24 * time.Hour
	// largest is the size above which a file is not a certificate or a key.
	largest = 1 << 20
)

// Keeper keeps the certificate. Use [Load] to make one. It is a [prometheus.Collector].
type Keeper struct {
	certificateFile, keyFile string
	log                      *slog.Logger
	current                  atomic.Pointer[tls.Certificate]

	mu sync.Mutex
	// read describes the files that were read last.
	read [2]version
	// failed is why these files can't be used; nil if they are. failures counts attempts.
	failed   error
	failures int
	// warned remembers warnings about failures, expiry and permissions.
	warned logonce.Filter
	noted  time.Time // when the last warning about the expiry was logged
}

// version describes the content of a file.
type version struct {
	device, inode    uint64
	size             int64
	modified, change syscall.Timespec
}

// Load reads the chain of certificates and the key, both in PEM. They may be in one file.
func Load(certificateFile, keyFile string, log *slog.Logger) (*Keeper, error) {
	k := &Keeper{certificateFile: certificateFile, keyFile: keyFile, log: log, read: versions(certificateFile, keyFile)}
	if err := k.load(); err != nil {
		return nil, err
	}
	k.log.Info("TLS certificate loaded", k.attributes()...)
	k.warn(time.Now())
	return k, nil
}

// Config returns the configuration of TLS, which always uses the current certificate.
func (k *Keeper) Config() *tls.Config {
	return &tls.Config{
		MinVersion:     tls.VersionTLS12,
		NextProtos:     []string{"http/1.1"},
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return k.current.Load(), nil },
	}
}

// Run reloads the files when they change, until the context ends.
func (k *Keeper) Run(ctx context.Context) {
	ticker := time.NewTicker(Interval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			k.check(time.Now(), false)
		}
	}
}

// Reload reads the files now, even if they seem unchanged.
func (k *Keeper) Reload() { k.check(time.Now(), true) }

// check reloads the files if they have changed. A certificate and its key are replaced one after
// the other, so it logs a failure only at the second attempt.
func (k *Keeper) check(now time.Time, always bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	found := versions(k.certificateFile, k.keyFile)
	changed := found != k.read
	if !changed && k.failed == nil && !always {
		k.warn(now)
		return
	}
	if changed {
		k.failures = 0
	}
	k.read = found
	before := k.current.Load()
	k.failed = k.load()
	if k.failed != nil {
		if k.failures++; k.failures > 1 || always {
			if always {
				k.warned.Forget()
			}
			k.warned.Log(k.log, slog.LevelWarn, now, "can't use the new TLS certificate: the old one stays in use, and the files are read again until they are right", "error", k.failed)
		}
		return
	}
	failures := k.failures
	k.failures = 0
	k.warned.Forget()
	if after := k.current.Load(); always || failures > 1 || !after.Leaf.Equal(before.Leaf) {
		k.noted = time.Time{}
		k.log.Info("TLS certificate reloaded", k.attributes()...)
	}
	k.warn(now)
}

// load reads the files, and uses them if they are right.
func (k *Keeper) load() error {
	chain, err := readFile(k.certificateFile)
	if err != nil {
		return fmt.Errorf("--tls-certificate=%s: %w", k.certificateFile, err)
	}
	key, err := readFile(k.keyFile)
	if err != nil {
		return fmt.Errorf("--tls-key=%s: %w", k.keyFile, err)
	}
	pair, err := tls.X509KeyPair(chain, key)
	switch {
	case err == nil:
		k.current.Store(&pair)
		return nil
	case !strings.Contains(string(chain), "-----BEGIN CERTIFICATE-----"):
		return fmt.Errorf("--tls-certificate=%s: the file has no certificate in PEM: name the chain, such as fullchain.pem", k.certificateFile)
	case strings.Contains(string(key), "ENCRYPTED"):
		return fmt.Errorf("--tls-key=%s: the key is encrypted: decrypt it, as with 'openssl pkey'", k.keyFile)
	case !strings.Contains(string(key), "PRIVATE KEY-----"):
		return fmt.Errorf("--tls-key=%s: the file has no private key in PEM: name the key, such as privkey.pem", k.keyFile)
	case strings.Contains(err.Error(), "does not match"):
		return fmt.Errorf("--tls-key=%s is not the key of --tls-certificate=%s: name files that belong together, with the server's own certificate first in the chain", k.keyFile, k.certificateFile)
	}
	return fmt.Errorf("--tls-certificate=%s --tls-key=%s: %w", k.certificateFile, k.keyFile, err)
}

var errNotFile = errors.New("not a regular file: name a file that can be read again when it changes")

func readFile(name string) ([]byte, error) {
	info, err := os.Stat(name)
	if err == nil && !info.Mode().IsRegular() {
		return nil, errNotFile
	}
	if err == nil && info.Size() > largest {
		return nil, fmt.Errorf("the file has %d bytes, which is too large for a certificate or key", info.Size())
	}
	if err == nil {
		var text []byte
		if text, err = os.ReadFile(name); err == nil {
			return text, nil
		}
	}
	var path *fs.PathError
	if errors.As(err, &path) {
		err = path.Err // the caller names the file
	}
	if errors.Is(err, fs.ErrPermission) {
		err = fmt.Errorf("%w: let the server's user or group read the file", err)
	}
	return nil, err
}

// versions returns the versions of files. Those that can't be examined have none.
func versions(names ...string) (all [2]version) {
	for i, name := range names {
		if info, err := os.Stat(name); err == nil {
			s := info.Sys().(*syscall.Stat_t)
			all[i] = version{s.Dev, s.Ino, s.Size, s.Mtim, s.Ctim}
		}
	}
	return all
}

// attributes describe the certificate for the log.
func (k *Keeper) attributes() []any {
	leaf := k.current.Load().Leaf
	names := append([]string{}, leaf.DNSNames...)
	for _, address := range leaf.IPAddresses {
		names = append(names, address.String())
	}
	return []any{"file", k.certificateFile, "names", strings.Join(names, " "), "issuer", leaf.Issuer.String(), "expires", leaf.NotAfter.UTC().Format(time.RFC3339)}
}

// warn logs once a day what is wrong with the certificate in use.
func (k *Keeper) warn(now time.Time) {
	if now.Sub(k.noted) < 24*time.Hour {
		return
	}
	k.noted = now
	for _, problem := range k.problems(now) {
		k.log.Warn(problem, k.attributes()...)
	}
	if info, err := os.Stat(k.keyFile); err == nil && info.Mode().Perm()&0o004 != 0 {
		k.log.Warn("all users of this machine can read the TLS key: run 'chmod o= "+k.keyFile+"'", "mode", info.Mode().Perm().String())
	}
}

// problems returns what is wrong with the certificate in use.
func (k *Keeper) problems(now time.Time) (problems []string) {
	leaf := k.current.Load().Leaf
	date := func(t time.Time) string { return t.UTC().Format(time.RFC3339) }
	switch left := leaf.NotAfter.Sub(now); {
	case left <= 0:
		problems = append(problems, "the TLS certificate has expired at "+date(leaf.NotAfter)+", and clients refuse it: renew it")
	case left < soon(leaf.NotBefore, leaf.NotAfter):
		problems = append(problems, "the TLS certificate expires at "+date(leaf.NotAfter)+": renew it")
	}
	if now.Before(leaf.NotBefore) {
		problems = append(problems, "the TLS certificate is valid only from "+date(leaf.NotBefore)+", and clients refuse it: is the clock right?")
	}
	return problems
}

// soon returns how long before its expiry a certificate should have been renewed: one for a few
// days can't have 14 left.
func soon(from, until time.Time) time.Duration { return min(expirySoon, until.Sub(from)/4) }

// Warnings returns warnings for the health.
func (k *Keeper) Warnings() []string {
	problems := k.problems(time.Now())
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.failures > 1 {
		problems = append(problems, "the files of the TLS certificate have changed and can't be used, so the old certificate stays in use: see the log")
	}
	return problems
}

var expiryDesc = prometheus.NewDesc("narherder_tls_certificate_expiry_timestamp_seconds", "When the TLS certificate expires.", nil, nil)

// Describe implements [prometheus.Collector].
func (*Keeper) Describe(descs chan<- *prometheus.Desc) { descs <- expiryDesc }

// Collect implements [prometheus.Collector].
func (k *Keeper) Collect(values chan<- prometheus.Metric) {
	expiry := float64(k.current.Load().Leaf.NotAfter.Unix())
	values <- prometheus.MustNewConstMetric(expiryDesc, prometheus.GaugeValue, expiry)
}
