package files

import (
	"context"
	"errors"
	"io"
	"net"
	"time"

	"nar-herder/peer/failover"
	"nar-herder/storage"
	"nar-herder/upstream"
)

// server is an upstream as a server of files. It rests while the upstream is down.
type server struct {
	failover.Server
	upstream *upstream.Upstream
}

// IsResting is for [failover.Server].
func (s *server) IsResting() bool { return !s.upstream.IsUp() || s.Server.IsResting() }

// OpenFile is for [failover.Server].
func (s *server) OpenFile(ctx context.Context, item *storage.Item, n int, offset, length int64, via []string) (io.ReadCloser, int64, error) {
	begun := time.Now()
	body, size, err := s.Server.OpenFile(ctx, item, n, offset, length, via)
	s.report(ctx, begun, err)
	return body, size, err
}

// Locate is for [failover.Server].
func (s *server) Locate(ctx context.Context, item *storage.Item, n int, via []string) (string, [16]byte, error) {
	begun := time.Now()
	location, sum, err := s.Server.Locate(ctx, item, n, via)
	s.report(ctx, begun, err)
	return location, sum, err
}

// report records whether the upstream can be reached. Any status is an answer, and so is a file
// of the wrong size.
func (s *server) report(ctx context.Context, begun time.Time, err error) {
	var network net.Error
	isNetwork := errors.As(err, &network) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)
	switch {
	case ctx.Err() != nil:
	case err == nil || errors.Is(err, storage.ErrNotStored):
		s.upstream.Report(nil, time.Since(begun))
	case isNetwork:
		s.upstream.Report(err, time.Since(begun))
	}
}
