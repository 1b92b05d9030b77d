package verify

import (
	"crypto/sha256"
	"errors"
	"hash"
	"io"
	"log/slog"
	"sync"
	"time"

	"nar-herder/compression/decoders"
	"nar-herder/storage"
	"nar-herder/storage/bytestore"
)

// Verifier reads bytes with a known hash, and fails before the last of them if the hash is
// wrong: the client's connection is cut then, instead of ending a complete but wrong answer.
type Verifier struct {
	io.ReadCloser
	sum  hash.Hash
	want [sha256.Size]byte
	// left is the number of remaining bytes, or -1 if unknown: the failure then replaces
	// io.EOF.
	left       int64
	failed     func(error)
	passed     func() // called if the hash is right, unless nil
	processors sync.Locker
	err        error
}

// Verify makes a Verifier that logs what is wrong with the item, and calls failed, unless nil.
func (c *Checker) Verify(r io.ReadCloser, size int64, want [sha256.Size]byte, item *storage.Item, failed func(error)) *Verifier {
	return &Verifier{ReadCloser: r, sum: sha256.New(), want: want, left: size, processors: c.Options.Decoders.Processors, failed: func(err error) {
		if failed != nil {
			failed(err)
		}
		if item.EasiestFile(item.HasStored) < 0 {
			c.Options.Cut(item, err)
			return
		}
		if errors.Is(err, decoders.ErrNotRestarted) {
			if c.Options.Live.Err() == nil {
				c.logged.Log(c.Options.Log, slog.LevelWarn, time.Now(), "a slow client's nar could not be decompressed to its end, and the connection was cut",
					"item", item.Narinfo.StorePath.String(), "error", err)
			}
			return
		}
		if errors.As(err, new(readError)) {
			c.logged.Log(c.Options.Log, slog.LevelError, time.Now(), "a stored nar can't be read; the client got an error, or its connection was cut",
				"item", item.Narinfo.StorePath.String(), "error", err)
			return
		}
		c.Options.Corrupt.Inc()
		c.logged.Log(c.Options.Log, slog.LevelError, time.Now(), "a stored nar is damaged; the client got an error, or its connection was cut: remove the item and import it again",
			"item", item.Narinfo.StorePath.String(), "error", err)
	}}
}

// CheckedFirst is the longest body that is compared before the status line. A longer one is
// compared while it is sent, and cut before its last bytes if it is wrong.
const CheckedFirst = decoders.Piece

// Verified reads size bytes of the item, at most CheckedFirst, and compares them with the hash.
// The error is ErrDamaged or a readError. The client then gets an error status, which is better
// than a cut answer, as it tries another server.
func (c *Checker) Verified(r io.Reader, size int64, want [sha256.Size]byte, item *storage.Item, failed func(error)) ([]byte, error) {
	v := c.Verify(io.NopCloser(r), size, want, item, failed)
	body := make([]byte, size+1) // one more, to see the end
	n, _ := io.ReadFull(v, body)
	if errors.As(v.err, new(readError)) && item.EasiestFile(item.HasStored) >= 0 {
		return nil, v.err
	} else if v.err != io.EOF {
		return nil, ErrDamaged
	}
	return body[:n], nil
}

// readError is a failure to read from the storage. The bytes may be good.
type readError struct{ error }

func (e readError) Unwrap() error { return e.error }

// stored reads from the storage. Its failures are readErrors.
type stored struct{ io.Reader }

func (s stored) Read(p []byte) (int, error) {
	n, err := s.Reader.Read(p)
	if err != nil && err != io.EOF && !errors.Is(err, bytestore.ErrDamaged) {
		err = readError{err}
	}
	return n, err
}

// ErrDamaged is the error for damaged bytes. The details were logged.
var ErrDamaged = errors.New("a nar is damaged")

var errWrongHash = errors.New("the bytes do not have the hash that the narinfo says")

func (v *Verifier) Read(p []byte) (int, error) {
	if v.err != nil {
		return 0, v.err
	}
	if v.left >= 0 && int64(len(p)) > v.left {
		p = p[:v.left]
	}
	var n int
	var err error
	if v.left != 0 {
		n, err = v.ReadCloser.Read(p)
		v.processors.Lock()
		v.sum.Write(p[:n])
		v.processors.Unlock()
	}
	if v.left > 0 {
		v.left -= int64(n)
	}
	switch {
	case err == io.EOF && v.left > 0:
		err = io.ErrUnexpectedEOF
	case v.left == 0 && (err == nil || err == io.EOF):
		if err = v.atEnd(); err == nil {
			err = v.check()
		}
	case err == io.EOF:
		err = v.check()
	}
	if err != nil {
		v.err = err
		if err != io.EOF {
			v.failed(err)
			n = 0
		}
	}
	return n, err
}

// atEnd returns an error if there are more bytes.
func (v *Verifier) atEnd() error {
	for range 100 {
		switch n, err := v.ReadCloser.Read(make([]byte, 1)); {
		case n > 0:
			return errors.New("the nar is longer than the narinfo says")
		case err == io.EOF:
			return nil
		case err != nil:
			return err
		}
	}
	return io.ErrNoProgress
}

// check returns io.EOF if the hash is right.
func (v *Verifier) check() error {
	if [sha256.Size]byte(v.sum.Sum(nil)) != v.want {
		return errWrongHash
	}
	if v.passed != nil {
		v.passed()
	}
	return io.EOF
}
