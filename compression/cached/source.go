package cached

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"nar-herder/peer"
	"nar-herder/storage"
	"nar-herder/storage/directory"
)

// Source opens the nars to compress.
type Source interface {
	// Open opens the item's nar, and returns its compression. The caller checks the bytes.
	Open(ctx context.Context, item *storage.Item) (nar io.ReadCloser, how string, err error)
}

var errNoFile = errors.New("the item has no file there in a supported compression")

// Remote opens nars at other instances; see [peer.Peer.OpenFile].
type Remote interface {
	OpenFile(ctx context.Context, item *storage.Item, n int, offset, length int64, via []string) (body io.ReadCloser, size int64, err error)
}

// storageSource reads from the storage, or from remote, if not nil, what is not stored there.
type storageSource struct {
	storage *storage.Storage
	remote  Remote
}

func (s storageSource) Open(ctx context.Context, item *storage.Item) (io.ReadCloser, string, error) {
	// If another instance owns the storage, the row may be outdated.
	if now, err := s.storage.Item(ctx, item.Hash); err == nil && now.Narinfo.NarHash == item.Narinfo.NarHash {
		item = now
	}
	n := item.EasiestFile(item.HasStored)
	if n < 0 && s.remote != nil {
		return peerSource{s.remote}.Open(ctx, item)
	}
	if n < 0 {
		return nil, "", errNoFile
	}
	reader, info, err := s.storage.OpenFile(ctx, item, n, 0, -1)
	if errors.Is(err, storage.ErrNotStored) && s.remote != nil {
		return peerSource{s.remote}.Open(ctx, item)
	}
	if err != nil {
		return nil, "", err
	}
	return limited{io.LimitReader(reader, info.Size), reader}, item.Narinfo.Files[n].Compression, nil
}

type limited struct {
	io.Reader
	io.Closer
}

// NewSource makes a source of a directory with nars at the paths of their URLs, or of the URL
// of an instance, to which self is sent.
func NewSource(name string, self peer.Self) (Source, error) {
	if strings.HasPrefix(name, "http://") || strings.HasPrefix(name, "https://") {
		base, err := peer.ParseURL(name)
		if err != nil {
			return nil, err
		}
		return peerSource{peer.New(base, self)}, nil
	}
	bytes, err := directory.Open(name)
	if err != nil {
		return nil, err
	}
	return directorySource{bytes}, nil
}

// directorySource reads from a directory.
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
		return nil, "", fmt.Errorf("wrong size: %s in %s has %d bytes, the narinfo says %d", item.FileName(n), s.bytes, info.Size, file.Size)
	}
	return limited{io.LimitReader(reader, info.Size), reader}, file.Compression, nil
}

// peerSource reads from other instances.
type peerSource struct{ peers Remote }

func (s peerSource) Open(ctx context.Context, item *storage.Item) (body io.ReadCloser, how string, err error) {
	err = errNoFile
	for tried := uint64(0); ; {
		n := item.EasiestFile(func(n int) bool { return n < 64 && tried&(1<<n) == 0 && item.FileName(n) != "" })
		if n < 0 {
			return nil, "", err
		}
		if body, _, err = s.peers.OpenFile(ctx, item, n, 0, -1, nil); err == nil {
			return body, item.Narinfo.Files[n].Compression, nil
		}
		tried |= 1 << n // another file may be available
	}
}
