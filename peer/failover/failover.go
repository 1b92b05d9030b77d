// Package failover opens files at the first of several servers that has them, and continues at
// the next one when that fails.
//
// A server may have another file under the same name: the same nar, compressed by another
// program. So the last bytes before the end of one answer are fetched again from the next
// server, and compared.
package failover

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"

	"nar-herder/peer"
	"nar-herder/storage"
)

// Server has nars, such as a [peer.Peer], which documents the methods. They may be called from
// several goroutines at once.
type Server interface {
	fmt.Stringer
	OpenFile(ctx context.Context, item *storage.Item, n int, offset, length int64, via []string) (body io.ReadCloser, size int64, err error)
	Locate(ctx context.Context, item *storage.Item, n int, via []string) (location string, sum [16]byte, err error)
	// IsResting reports whether the server has failed so recently and slowly that clients
	// should not wait for it, and HasFailed whether its last answer failed.
	IsResting() bool
	HasFailed() bool
}

var (
	// ErrDiffers reports that a server has another file than the one that was begun.
	ErrDiffers = errors.New("it has another file of that name")
	errResting = errors.New("it has just failed")
)

const (
	// overlap is how many bytes are fetched again and compared.
	overlap = 64 << 10
	// minGain is how many bytes a body must have got from a server before it continues at
	// another one once more.
	minGain = 64 << 10
	// rejectedFor is how long a server is asked last for a file that was wrong, and
	// maxRejected how many such files are remembered.
	rejectedFor = 10 * time.Minute
	maxRejected = 10_000
)

// Source opens files at servers. Its methods may be called from several goroutines at once.
type Source struct {
	order    func(ctx context.Context, item *storage.Item) []Server
	rejected *lru.Cache[rejection, time.Time]
}

// rejection is a file of a server that was wrong.
type rejection struct {
	server Server
	name   string
}

// New makes a source. order returns the servers that may have an item's files, in the order of
// preference. Servers must be comparable.
func New(order func(ctx context.Context, item *storage.Item) []Server) *Source {
	rejected, err := lru.New[rejection, time.Time](maxRejected)
	if err != nil {
		panic(err) // of a negative size
	}
	return &Source{order, rejected}
}

// Of makes a source of servers in the order of preference.
func Of[S Server](servers ...S) *Source {
	all := make([]Server, len(servers))
	for i, server := range servers {
		all[i] = server
	}
	return New(func(context.Context, *storage.Item) []Server { return all })
}

// servers returns the servers for an item's Nth file. Those with a wrong one are last, in the order
// in which they were rejected, so that they take turns.
func (s *Source) servers(ctx context.Context, item *storage.Item, n int) []Server {
	servers := s.order(ctx, item)
	if s.rejected.Len() == 0 {
		return servers
	}
	name := item.FileName(n)
	servers = slices.Clone(servers)
	slices.SortStableFunc(servers, func(a, b Server) int { return s.rejectedAt(a, name).Compare(s.rejectedAt(b, name)) })
	return servers
}

// rejectedAt returns when a server's file was wrong, zero if that is not known.
func (s *Source) rejectedAt(server Server, name string) time.Time {
	at, ok := s.rejected.Peek(rejection{server, name})
	if !ok || time.Since(at) >= rejectedFor {
		return time.Time{}
	}
	return at
}

func number(b bool) int {
	if b {
		return 1
	}
	return 0
}

// first calls ask for one server after the other until one has the file. The error is
// [storage.ErrNotStored] if certainly none has it, and another if one of them may.
func first(ctx context.Context, servers []Server, ask func(Server) error) error {
	var failures []error
	for _, server := range servers {
		err := fmt.Errorf("ask %s: %w", server, errResting)
		if !server.IsResting() {
			err = ask(server)
		}
		if err == nil {
			return nil
		}
		if !errors.Is(err, storage.ErrNotStored) {
			failures = append(failures, err)
		}
		if ctx.Err() != nil {
			break
		}
	}
	if len(failures) == 0 {
		return storage.ErrNotStored
	}
	return errors.Join(failures...)
}

// Locate returns the URL of an item's Nth file at the first server that has it, as
// [peer.Peer.Locate] does.
func (s *Source) Locate(ctx context.Context, item *storage.Item, n int, via []string) (location string, sum [16]byte, err error) {
	err = first(ctx, s.servers(ctx, item, n), func(server Server) (err error) {
		location, sum, err = server.Locate(ctx, item, n, via)
		return err
	})
	return location, sum, err
}

// OpenFile opens an item's Nth file at the first server that has it, see [peer.Peer.OpenFile].
// The body continues at the next server when one fails.
func (s *Source) OpenFile(ctx context.Context, item *storage.Item, n int, offset, length int64, via []string) (_ io.ReadCloser, size int64, err error) {
	b := &continued{s: s, ctx: ctx, item: item, n: n, via: via, offset: offset, end: -1}
	err = first(ctx, s.servers(ctx, item, n), func(server Server) (err error) {
		var from io.ReadCloser
		if from, size, err = server.OpenFile(ctx, item, n, offset, length, via); err == nil {
			b.first = s.answerOf(ctx, from, server, item, n)
			b.from = b.first
		}
		return err
	})
	if err != nil {
		return nil, 0, err
	}
	if b.end = size; length >= 0 {
		b.end = offset + length
		if size >= 0 {
			b.end = min(b.end, size)
		}
	}
	return b, size, nil
}

// Resume opens the rest of an item's Nth file from the offset on, at a server with the same
// file: before has the bytes before the offset. It prefers servers that have not just failed.
// The body ends when that server fails, and the caller resumes again. Errors are as in
// [Source.OpenFile], or [ErrDiffers] if one of the servers has another file.
func (s *Source) Resume(ctx context.Context, item *storage.Item, n int, before io.ReaderAt, offset int64, via []string) (io.ReadCloser, int64, error) {
	body, size, err := s.resume(ctx, item, n, before, max(0, offset-overlap), offset, via)
	if err != nil {
		return nil, 0, err // not a nil *answer
	}
	return body, size, nil
}

// resume is Resume that compares the bytes from begin to the offset.
func (s *Source) resume(ctx context.Context, item *storage.Item, n int, before io.ReaderAt, begin, offset int64, via []string) (body *answer, size int64, err error) {
	servers := slices.Clone(s.servers(ctx, item, n))
	slices.SortStableFunc(servers, func(a, b Server) int { return number(a.HasFailed()) - number(b.HasFailed()) })
	err = first(ctx, servers, func(server Server) error {
		from, whole, err := resumeAt(ctx, server, item, n, before, begin, offset, via)
		if err == nil {
			body, size = s.answerOf(ctx, from, server, item, n), whole
		}
		return err
	})
	return body, size, err
}

// resumeAt opens the rest of a file at a server after comparing what comes before.
func resumeAt(ctx context.Context, server Server, item *storage.Item, n int, before io.ReaderAt, begin, offset int64, via []string) (_ io.ReadCloser, size int64, err error) {
	body, size, err := server.OpenFile(ctx, item, n, begin, -1, via)
	skip := int64(0)
	if errors.Is(err, peer.ErrNoRange) {
		body, size, err = server.OpenFile(ctx, item, n, 0, -1, via)
		skip = begin
	}
	if err != nil {
		return nil, 0, err
	}
	defer func() {
		if err != nil {
			body.Close()
			err = fmt.Errorf("resume %s from %s at %d: %w", item.FileName(n), server, offset, err)
		}
	}()
	if size >= 0 && size < offset {
		return nil, 0, fmt.Errorf("%w: of %d bytes", ErrDiffers, size)
	}
	if _, err := io.CopyN(io.Discard, body, skip); err != nil {
		return nil, 0, noEnd(err)
	}
	have, again := make([]byte, offset-begin), make([]byte, offset-begin)
	if _, err := before.ReadAt(have, begin); err != nil && (len(have) > 0 || err != io.EOF) {
		return nil, 0, err
	}
	if _, err := io.ReadFull(body, again); err != nil {
		return nil, 0, noEnd(err)
	}
	if !bytes.Equal(have, again) {
		return nil, 0, ErrDiffers
	}
	return body, size, nil
}

// noEnd is an error of reading bytes that must come.
func noEnd(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// Reject reports that a body of a [Source] is wrong. Its server is asked last for that file for
// some time. Of several servers, that is the first: if another is at fault, that one is asked for
// the whole file next. A body that has failed is incomplete, not wrong, and nothing is rejected.
// Reject returns the server's name, and whether there is another one to ask.
func Reject(body any) (server string, others bool) {
	switch b := body.(type) {
	case *answer:
		return b.reject()
	case *continued:
		if !b.cut {
			return b.first.reject()
		}
	}
	return "", false
}

// answer is the body of one server.
type answer struct {
	io.ReadCloser
	reject func() (string, bool)
}

func (s *Source) answerOf(ctx context.Context, body io.ReadCloser, server Server, item *storage.Item, n int) *answer {
	return &answer{body, func() (string, bool) {
		name := item.FileName(n)
		s.rejected.Add(rejection{server, name}, time.Now())
		others := slices.ContainsFunc(s.order(context.WithoutCancel(ctx), item), func(other Server) bool {
			return s.rejectedAt(other, name).IsZero()
		})
		return server.String(), others
	}}
}

// Sum is for [peer.SumOf].
func (a *answer) Sum() [16]byte { return peer.SumOf(a.ReadCloser) }
