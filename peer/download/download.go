// Package download downloads files that a peer publishes, and resumes interrupted downloads.
package download

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"nar-herder/internal/disk"
	"nar-herder/peer"
)

var (
	// ErrNone reports that the peer publishes no such file.
	ErrNone = errors.New("it publishes none")
	// ErrNotReady reports that it will publish one.
	ErrNotReady = errors.New("it has none yet")
)

// File is a complete download.
type File struct {
	Name string
	Size int64
	// Encoding is "zstd" or "".
	Encoding string
	// Verified reports whether the file has the digest that the peer sent.
	Verified bool
	// Modified is when the peer made it; zero if unknown.
	Modified time.Time
	// Tag identifies this version of the file; "" if the peer sent nothing to identify it.
	Tag string
}

// partial describes an unfinished download, in a file beside it.
type partial struct {
	Path     string    `json:"path"`
	ETag     string    `json:"etag"`
	Encoding string    `json:"encoding"`
	Size     int64     `json:"size"` // -1 when it is not known
	Digest   string    `json:"digest"`
	Modified time.Time `json:"modified"`
}

const partialSuffix = ".json"

// tag identifies the version, whatever its encoding.
func (p *partial) tag() string {
	if !p.Modified.IsZero() {
		return p.Modified.UTC().Format(time.RFC3339)
	}
	return p.ETag
}

// Look returns the [File.Tag] of the peer's current file and its size, -1 if unknown. With
// zstd, the size is that of the compressed file, if the peer has one. Errors are as in
// [Fetch].
func Look(ctx context.Context, p *peer.Peer, path string, zstd bool) (tag string, size int64, err error) {
	ctx, cancel := context.WithTimeout(ctx, p.Self().AnswerTimeout)
	defer cancel()
	request, err := p.NewRequest(ctx, http.MethodHead, path)
	if err != nil {
		return "", 0, err
	}
	request.Header.Set("Accept-Encoding", acceptEncoding(zstd))
	response, err := p.Do(request)
	if err != nil {
		return "", 0, fmt.Errorf("look at %s%s: %w", p, path, err)
	}
	response.Body.Close()
	switch response.StatusCode {
	case http.StatusOK:
	case http.StatusNotFound:
		return "", 0, fmt.Errorf("look at %s%s: %w", p, path, ErrNone)
	case http.StatusServiceUnavailable:
		return "", 0, fmt.Errorf("look at %s%s: %w", p, path, ErrNotReady)
	default:
		return "", 0, fmt.Errorf("look at %s%s: it answers %s", p, path, response.Status)
	}
	known := partial{ETag: response.Header.Get("ETag")}
	known.Modified, _ = http.ParseTime(response.Header.Get("Last-Modified"))
	return known.tag(), response.ContentLength, nil
}

func acceptEncoding(zstd bool) string {
	if zstd {
		return "zstd, identity;q=0.5"
	}
	return "identity"
}

// IsBegun reports whether part of the peer's file has been downloaded to the name.
func IsBegun(path, name string) bool {
	_, have := readPartial(name, path)
	return have > 0
}

// Fetch downloads one of the peer's files to the name, compressed with zstd if that is true
// and the peer has it so. It resumes an earlier call, also of another process, if the peer
// still has the same file. progress, which may be nil, receives the number of bytes so far
// and in all, -1 if unknown. The error is [ErrNone], [ErrNotReady], [peer.ErrDamaged],
// [disk.ErrNoRoom], or another. After an error, the next call resumes, unless the bytes are
// wrong or the disk is nearly full. Without an error, the file is complete and synced, and
// the caller removes it with [Discard].
func Fetch(ctx context.Context, p *peer.Peer, path, name string, zstd bool, progress func(done, total int64)) (_ *File, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("download %s%s: %w", p, path, err)
		}
	}()
	known, have := readPartial(name, path)
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	request, err := p.NewRequest(ctx, http.MethodGet, path)
	if err != nil {
		return nil, err
	}
	request.Header.Set("Accept-Encoding", acceptEncoding(zstd))
	if have > 0 {
		request.Header.Set("Range", "bytes="+strconv.FormatInt(have, 10)+"-")
		request.Header.Set("If-Range", known.ETag)
	}
	response, err := p.Do(request)
	if err != nil {
		return nil, err
	}
	body := p.Watch(response.Body, response.ContentLength, cancel)
	defer body.Close()
	switch {
	case response.StatusCode == http.StatusNotFound:
		return nil, ErrNone
	case response.StatusCode == http.StatusServiceUnavailable:
		return nil, ErrNotReady
	case response.StatusCode == http.StatusRequestedRangeNotSatisfiable && have > 0 && have == known.Size:
		return finish(ctx, name, known, nil)
	case response.StatusCode == http.StatusPartialContent && have > 0:
		if response.Header.Get("ETag") != known.ETag || !peer.IsRangeOf(response.Header.Get("Content-Range"), have, known.Size) {
			return nil, errors.Join(fmt.Errorf("%w: another part than the one that was asked for", peer.ErrAnswer), Discard(name))
		}
	case response.StatusCode == http.StatusOK:
		have = 0
		if known, err = begin(name, path, response); err != nil {
			return nil, err
		}
	default:
		if response.StatusCode == http.StatusRequestedRangeNotSatisfiable {
			err = Discard(name)
		}
		return nil, errors.Join(fmt.Errorf("it answers %s", response.Status), err)
	}
	if err := p.Self().Room.Check(filepath.Dir(name), max(known.Size-have, 0)); err != nil {
		return nil, errors.Join(err, Discard(name))
	}
	file, err := disk.OpenFile(name, os.O_RDWR, 0o644, disk.GroupWrites)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	digest, err := digestOf(ctx, file, have)
	if err != nil {
		return nil, err
	}
	meter := &meter{done: have, total: known.Size, report: progress}
	bounded := &disk.Writer{W: file, Directory: filepath.Dir(name), Look: p.Self().Room}
	stop := disk.WriteOut(name)
	_, err = io.CopyBuffer(io.MultiWriter(bounded, digest, meter), struct{ io.Reader }{body}, make([]byte, 256<<10))
	stop()
	if syncErr := file.Sync(); err == nil {
		err = syncErr
	}
	if cause := context.Cause(ctx); err != nil && cause != nil {
		err = cause
	}
	if disk.IsFull(err) {
		// Others need the room more.
		return nil, errors.Join(err, Discard(name))
	}
	if err != nil {
		return nil, err
	}
	if known.Size >= 0 && meter.done != known.Size {
		return nil, errors.Join(fmt.Errorf("%w: %d bytes have come of %d", peer.ErrAnswer, meter.done, known.Size), Discard(name))
	}
	known.Size = meter.done
	return finish(ctx, name, known, digest)
}

// readPartial returns the description of an unfinished download, and its length so far.
func readPartial(name, path string) (partial, int64) {
	var known partial
	text, err := os.ReadFile(name + partialSuffix)
	if err != nil || json.Unmarshal(text, &known) != nil || known.Path != path || known.Size < 0 || !strings.HasPrefix(known.ETag, `"`) {
		return partial{}, 0
	}
	info, err := os.Stat(name)
	if err != nil || info.Size() > known.Size {
		return partial{}, 0
	}
	return known, info.Size()
}

// begin writes the description of a download before its content.
func begin(name, path string, response *http.Response) (partial, error) {
	known := partial{
		Path: path, ETag: response.Header.Get("ETag"), Encoding: response.Header.Get("Content-Encoding"), Size: response.ContentLength,
		Digest: response.Header.Get(peer.DigestHeader),
	}
	if known.Encoding == "identity" {
		known.Encoding = ""
	}
	if known.Encoding != "" && known.Encoding != "zstd" {
		return known, fmt.Errorf("%w: its encoding is %q", peer.ErrAnswer, known.Encoding)
	}
	if kind := response.Header.Get("Content-Type"); strings.HasPrefix(kind, "text/html") {
		return known, fmt.Errorf("%w: it is a page for browsers", peer.ErrAnswer)
	}
	known.Modified, _ = http.ParseTime(response.Header.Get("Last-Modified"))
	text, err := json.Marshal(known)
	if err != nil {
		return known, err
	}
	// In this order, so that an old file is never taken for part of the new one.
	if err := Discard(name); err != nil {
		return known, err
	}
	file, err := disk.OpenFile(name+partialSuffix, os.O_WRONLY|os.O_TRUNC, 0o644, disk.GroupWrites)
	if err != nil {
		return known, err
	}
	_, err = file.Write(text)
	return known, errors.Join(err, file.Close(), disk.SyncDirectory(name))
}

// digestOf truncates a file to a length and hashes it. The file is at its end then.
func digestOf(ctx context.Context, file *os.File, have int64) (hash.Hash, error) {
	digest := sha256.New()
	if err := file.Truncate(have); err != nil {
		return nil, err
	}
	buffer := make([]byte, 1<<20)
	for {
		n, err := file.Read(buffer)
		digest.Write(buffer[:n])
		if err == io.EOF {
			return digest, nil
		}
		if err = errors.Join(err, ctx.Err()); err != nil {
			return nil, err
		}
	}
}

// finish compares a file with its digest. It reads the file if digest is nil.
func finish(ctx context.Context, name string, known partial, digest hash.Hash) (*File, error) {
	done := &File{Name: name, Size: known.Size, Encoding: known.Encoding, Modified: known.Modified, Tag: known.tag()}
	want, ok := strings.CutPrefix(known.Digest, "sha-256=:")
	if !ok {
		return done, nil
	}
	if digest == nil {
		file, err := os.OpenFile(name, os.O_RDWR, 0)
		if err != nil {
			return nil, err
		}
		defer file.Close()
		if digest, err = digestOf(ctx, file, known.Size); err != nil {
			return nil, err
		}
	}
	if base64.StdEncoding.EncodeToString(digest.Sum(nil)) != strings.TrimSuffix(want, ":") {
		return nil, errors.Join(peer.ErrDamaged, Discard(name))
	}
	done.Verified = true
	return done, nil
}

// Discard removes a download, complete or not.
func Discard(name string) error {
	var failures []error
	for _, name := range []string{name + partialSuffix, name} {
		if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			failures = append(failures, err)
		}
	}
	return errors.Join(failures...)
}

// meter reports the progress of a copy.
type meter struct {
	done, total int64
	report      func(done, total int64)
}

func (m *meter) Write(p []byte) (int, error) {
	m.done += int64(len(p))
	if m.report != nil {
		m.report(m.done, m.total)
	}
	return len(p), nil
}
