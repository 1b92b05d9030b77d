package peer

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
)

// What instances publish for others to start from.
const (
	// DumpPath has the database in the original's schema.
	DumpPath = "/latest-database-dump"
	// IndexPath has a copy of the index, as this program uses it.
	IndexPath = "/latest-index-dump"
	// DigestHeader has the SHA-256 of what an answer is about as a whole, as in
	// RFC 9530.
	DigestHeader = "Repr-Digest"
)

var (
	// ErrNoDump says that the instance publishes no such file.
	ErrNoDump = errors.New("it publishes none")
	// ErrNotReady says that it will.
	ErrNotReady = errors.New("it has none yet")
)

// Downloaded is a file that has come whole.
type Downloaded struct {
	Name string
	Size int64
	// Encoding is "zstd" or "".
	Encoding string
	// Verified says that the file has the digest that the peer has told.
	Verified bool
	// Modified is when the peer made it, as it says; zero when it doesn't.
	Modified time.Time
	// Tag tells it from others that the peer makes; "" when it can't be told.
	Tag string
}

// part is what is known of a download that is not done, in a file beside it.
type partial struct {
	Path     string    `json:"path"`
	ETag     string    `json:"etag"`
	Encoding string    `json:"encoding"`
	Size     int64     `json:"size"` // -1 when it is not known
	Digest   string    `json:"digest"`
	Modified time.Time `json:"modified"`
}

const partialSuffix = ".json"

// tag is of the file, in whatever encoding it comes.
func (p *partial) tag() string {
	if !p.Modified.IsZero() {
		return p.Modified.UTC().Format(time.RFC3339)
	}
	return p.ETag
}

// Look returns the [Downloaded.Tag] that one of the peer's files has now, and its
// size, with zstd in that encoding where the peer has it; -1 when it is not known.
// The errors are as in [Peer.Download].
func (p *Peer) Look(ctx context.Context, path string, zstd bool) (tag string, size int64, err error) {
	ctx, cancel := context.WithTimeout(ctx, p.self.AnswerTimeout)
	defer cancel()
	request, err := p.newRequest(ctx, http.MethodHead, path)
	if err != nil {
		return "", 0, err
	}
	request.Header.Set("Accept-Encoding", acceptEncoding(zstd))
	response, err := p.client.Do(request)
	if err != nil {
		return "", 0, fmt.Errorf("look at %s%s: %w", p, path, explain(err))
	}
	response.Body.Close()
	switch response.StatusCode {
	case http.StatusOK:
	case http.StatusNotFound:
		return "", 0, fmt.Errorf("look at %s%s: %w", p, path, ErrNoDump)
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

// IsBegun says whether a part of the peer's file has been downloaded to the name.
func IsBegun(path, name string) bool {
	_, have := readPartial(name, path)
	return have > 0
}

// Download fetches one of the peer's files to the name, with zstd in that encoding
// where the peer has it. It goes on where an earlier call, also of another
// process, has stopped, if the peer still has the same file. progress, which may be
// nil, is told how many bytes are there, and of how many, -1 when that is not
// known. The error is [ErrNoDump], [ErrNotReady], [ErrDamaged],
// [disk.ErrNoRoom], or another; what has come stays for the next call, unless it is
// wrong or the disk is nearly full. When there is no
// error, the file is whole and safe on the disk, and the caller's to remove with
// [Discard].
func (p *Peer) Download(ctx context.Context, path, name string, zstd bool, progress func(done, total int64)) (_ *Downloaded, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("download %s%s: %w", p, path, err)
		}
	}()
	known, have := readPartial(name, path)
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	request, err := p.newRequest(ctx, http.MethodGet, path)
	if err != nil {
		return nil, err
	}
	request.Header.Set("Accept-Encoding", acceptEncoding(zstd))
	if have > 0 {
		request.Header.Set("Range", "bytes="+strconv.FormatInt(have, 10)+"-")
		request.Header.Set("If-Range", known.ETag)
	}
	response, err := p.client.Do(request)
	if err != nil {
		return nil, explain(err)
	}
	body := newProgressing(response.Body, response.ContentLength, p.self.ProgressTimeout, cancel, p.name)
	defer body.Close()
	switch {
	case response.StatusCode == http.StatusNotFound:
		return nil, ErrNoDump
	case response.StatusCode == http.StatusServiceUnavailable:
		return nil, ErrNotReady
	case response.StatusCode == http.StatusRequestedRangeNotSatisfiable && have > 0 && have == known.Size:
		return finish(ctx, name, known, nil)
	case response.StatusCode == http.StatusPartialContent && have > 0:
		if response.Header.Get("ETag") != known.ETag || !isRangeOf(response.Header.Get("Content-Range"), have, known.Size) {
			return nil, errors.Join(fmt.Errorf("%w: another part than the one that was asked for", ErrAnswer), Discard(name))
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
	if err := p.self.Room.Check(filepath.Dir(name), max(known.Size-have, 0)); err != nil {
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
	meter := &meter{done: have, total: known.Size, tell: progress}
	bounded := &disk.Writer{W: file, Directory: filepath.Dir(name), Look: p.self.Room}
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
		// The room is needed more than what has come.
		return nil, errors.Join(err, Discard(name))
	}
	if err != nil {
		return nil, err
	}
	if known.Size >= 0 && meter.done != known.Size {
		return nil, errors.Join(fmt.Errorf("%w: %d bytes have come of %d", ErrAnswer, meter.done, known.Size), Discard(name))
	}
	known.Size = meter.done
	return finish(ctx, name, known, digest)
}

// readPartial returns what is known of a download, and how much of it is there.
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

// begin notes what is coming, before any of it does.
func begin(name, path string, response *http.Response) (partial, error) {
	known := partial{
		Path: path, ETag: response.Header.Get("ETag"), Encoding: response.Header.Get("Content-Encoding"), Size: response.ContentLength,
		Digest: response.Header.Get(DigestHeader),
	}
	if known.Encoding == "identity" {
		known.Encoding = ""
	}
	if known.Encoding != "" && known.Encoding != "zstd" {
		return known, fmt.Errorf("%w: its encoding is %q", ErrAnswer, known.Encoding)
	}
	if kind := response.Header.Get("Content-Type"); strings.HasPrefix(kind, "text/html") {
		return known, fmt.Errorf("%w: it is a page for browsers", ErrAnswer)
	}
	known.Modified, _ = http.ParseTime(response.Header.Get("Last-Modified"))
	text, err := json.Marshal(known)
	if err != nil {
		return known, err
	}
	// In this order: what lies there is never taken for a part of what comes.
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

// digestOf reads what is there of a file, whose end it then is at.
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

// finish compares a file with its digest; nil has it read.
func finish(ctx context.Context, name string, known partial, digest hash.Hash) (*Downloaded, error) {
	done := &Downloaded{Name: name, Size: known.Size, Encoding: known.Encoding, Modified: known.Modified, Tag: known.tag()}
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
		return nil, errors.Join(ErrDamaged, Discard(name))
	}
	done.Verified = true
	return done, nil
}

// Discard removes a file that was downloaded, or a part of one.
func Discard(name string) error {
	var failures []error
	for _, name := range []string{name + partialSuffix, name} {
		if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			failures = append(failures, err)
		}
	}
	return errors.Join(failures...)
}

// meter tells how far a copy has come.
type meter struct {
	done, total int64
	tell        func(done, total int64)
}

func (m *meter) Write(p []byte) (int, error) {
	m.done += int64(len(p))
	if m.tell != nil {
		m.tell(m.done, m.total)
	}
	return len(p), nil
}
