package cached

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"nar-herder/storage"
	"nar-herder/storage/directory"
)

// Source is where nars to be compressed are read from.
type Source interface {
	// Open opens the item's nar, and says in which compression it comes. What
	// comes may be wrong: it is checked.
	Open(ctx context.Context, item *storage.Item) (nar io.ReadCloser, how string, err error)
}

var errNoFile = errors.New("it has no file there in a compression that can be read")

// storageSource reads from the storage.
type storageSource struct{ storage *storage.Storage }

func (s storageSource) Open(ctx context.Context, item *storage.Item) (io.ReadCloser, string, error) {
	n := item.EasiestFile(item.HasStored)
	if n < 0 {
		return nil, "", errNoFile
	}
	reader, info, err := s.storage.OpenFile(ctx, item, n, 0, -1)
	if err != nil {
		return nil, "", err
	}
	return limited{io.LimitReader(reader, info.Size), reader}, item.Narinfo.Files[n].Compression, nil
}

type limited struct {
	io.Reader
	io.Closer
}

// NewSource makes the source that an administrator names: a directory with nars
// under the paths of their URLs, or the URL of a server.
func NewSource(name string) (Source, error) {
	if strings.HasPrefix(name, "http://") || strings.HasPrefix(name, "https://") {
		base, err := url.Parse(name)
		if err != nil || base.Host == "" {
			return nil, fmt.Errorf("%q is no URL of a server: http://HOST or https://HOST, perhaps with port and path", name)
		}
		client := &http.Client{Transport: &http.Transport{
			Proxy:                 http.ProxyFromEnvironment,
			ResponseHeaderTimeout: progressTimeout,
			TLSHandshakeTimeout:   progressTimeout,
			// Bytes are to come as they lie there.
			DisableCompression: true,
		}}
		return &urlSource{strings.TrimSuffix(base.String(), "/"), client}, nil
	}
	bytes, err := directory.Open(name)
	if err != nil {
		return nil, err
	}
	return directorySource{bytes}, nil
}

// directorySource reads from another directory than the storage's.
type directorySource struct{ bytes *directory.Directory }

func (s directorySource) Open(ctx context.Context, item *storage.Item) (io.ReadCloser, string, error) {
	n := item.EasiestFile(func(n int) bool {
		if item.FileName(n) == "" {
			return false
		}
		_, err := s.bytes.Stat(ctx, item.FileName(n))
		return err == nil
	})
	if n < 0 {
		return nil, "", fmt.Errorf("%s: %w", s.bytes, errNoFile)
	}
	reader, info, err := s.bytes.Open(ctx, item.FileName(n), 0, -1)
	if err != nil {
		return nil, "", err
	}
	file := item.Narinfo.Files[n]
	if file.Size >= 0 && info.Size != file.Size {
		reader.Close()
		return nil, "", fmt.Errorf("%s in %s has %d bytes where the narinfo says %d", item.FileName(n), s.bytes, info.Size, file.Size)
	}
	return limited{io.LimitReader(reader, info.Size), reader}, file.Compression, nil
}

// progressTimeout is how long a server may send nothing.
const progressTimeout = 60 * time.Second

// urlSource reads from a server.
type urlSource struct {
	base   string
	client *http.Client
}

func (s *urlSource) Open(ctx context.Context, item *storage.Item) (io.ReadCloser, string, error) {
	n := item.EasiestFile(func(n int) bool { return item.FileName(n) != "" })
	if n < 0 {
		return nil, "", errNoFile
	}
	file := item.Narinfo.Files[n]
	address := s.base + "/" + strings.TrimPrefix(file.URL, "/")
	ctx, cancel := context.WithCancelCause(ctx)
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		cancel(nil)
		return nil, "", err
	}
	response, err := s.client.Do(request)
	if err != nil {
		cancel(nil)
		var unknown x509.UnknownAuthorityError
		var none x509.SystemRootsError
		if errors.As(err, &unknown) || errors.As(err, &none) {
			err = fmt.Errorf("%w: this machine has no certificate that vouches for the server: install CA certificates, and name them in SSL_CERT_DIR or SSL_CERT_FILE", err)
		}
		return nil, "", err
	}
	if response.StatusCode != http.StatusOK {
		response.Body.Close()
		cancel(nil)
		return nil, "", fmt.Errorf("GET %s: %s", address, response.Status)
	}
	if file.Size >= 0 && response.ContentLength >= 0 && response.ContentLength != file.Size {
		response.Body.Close()
		cancel(nil)
		return nil, "", fmt.Errorf("GET %s: %d bytes are coming where the narinfo says %d", address, response.ContentLength, file.Size)
	}
	body := &progressing{body: response.Body, cancel: cancel}
	body.timer = time.AfterFunc(progressTimeout, func() { cancel(fmt.Errorf("GET %s: nothing came for %s", address, progressTimeout)) })
	return body, file.Compression, nil
}

// progressing ends a body that stops to come.
type progressing struct {
	body   io.ReadCloser
	cancel context.CancelCauseFunc
	timer  *time.Timer
}

func (p *progressing) Read(b []byte) (int, error) {
	p.timer.Reset(progressTimeout)
	return p.body.Read(b)
}

func (p *progressing) Close() error {
	p.timer.Stop()
	p.cancel(nil)
	return p.body.Close()
}
