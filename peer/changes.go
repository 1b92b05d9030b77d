package peer

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"nar-herder/narinfo"
)

// How an instance publishes its changes. The original knows ChangesPath with the query
// parameter [SinceKey] only, and probably answers
//
//	{"recent_changes": [{"datetime", "change", "data"}, …]}
//
// with the changes of that datetime or later, the oldest first. This program also numbers
// its changes. It answers [AfterKey] with a [ChangesReply], and StreamPath with an endless
// stream of server-sent events
// (https://html.spec.whatwg.org/multipage/server-sent-events.html): a [StateEvent] with the
// state of the log at first and every [StreamPulse], and a [ChangeEvent] for each change.
const (
	ChangesPath = "/recent-changes"
	StreamPath  = "/recent-changes/stream"
	// SinceKey has a datetime.
	SinceKey = "since"
	// AfterKey has the number of the last known change, and InstanceKey the name of the
	// instance that numbered it.
	AfterKey    = "after"
	InstanceKey = "instance"
	// MarkKey has the mark of that change, if known.
	MarkKey = "mark"

	StateEvent  = "state"
	ChangeEvent = "change"
	// StreamPulse is the time between two states in a stream.
	StreamPulse = 15 * time.Second

	// Addition and Removal are kinds of changes: the data is the narinfo's text
	// or the store path.
	Addition = "addition"
	Removal  = "removal"
)

// Change is one of the recent changes.
type Change struct {
	// Datetime is when the first instance made it, in UTC, in the format [time.DateTime].
	Datetime string `json:"datetime"`
	Change   string `json:"change"`
	Data     string `json:"data"`
	// ID is its number; 0 from the original, which has none of the fields below.
	ID int64 `json:"id,omitempty"`
	// Previous is the number of the change or state before, or the number in the request,
	// so that a lost change is noticed.
	Previous int64 `json:"previous,omitempty"`
	// Mark differs between two changes with the same number, which exist after a backup
	// was restored.
	Mark string `json:"mark,omitempty"`
	// Sum shows damage, see [Change.Seal].
	Sum string `json:"sum,omitempty"`
}

// Size returns about how many bytes of memory the change takes.
func (c *Change) Size() int {
	return len(c.Datetime) + len(c.Change) + len(c.Data) + len(c.Mark) + len(c.Sum)
}

// Seal sets the sum of a change that the instance sends.
func (c *Change) Seal(instance string) { c.Sum = c.sum(instance) }

func (c *Change) sum(instance string) string {
	return sum(instance, number(c.ID), number(c.Previous), c.Mark, c.Datetime, c.Change, c.Data)
}

func number(n int64) string { return strconv.FormatInt(n, 10) }

// sum is a digest of words. The checksum of TCP is too weak for data that is kept for years,
// and doesn't cover proxies and disks.
func sum(words ...string) string {
	digest := sha256.New()
	for _, word := range words {
		fmt.Fprintf(digest, "%d:%s,", len(word), word)
	}
	return hex.EncodeToString(digest.Sum(nil)[:16])
}

// LogState is the state of an instance's log of changes.
type LogState struct {
	// Instance is the random name of the instance that numbers the changes.
	Instance string `json:"instance"`
	// First is the oldest change in the log, and Last the newest. All changes up to
	// Position have been sent.
	First    int64 `json:"first"`
	Last     int64 `json:"last"`
	Position int64 `json:"position"`
	// Previous and Mark are as in [Change], of the Position.
	Previous int64  `json:"previous"`
	Mark     string `json:"mark"`
	// Chain has the instances that this one mirrors, directly or through others.
	Chain []string `json:"chain,omitempty"`
	Sum   string   `json:"sum"`
}

// Seal sets the sum.
func (s *LogState) Seal() { s.Sum = s.sum() }

func (s *LogState) sum() string {
	return sum(append([]string{s.Instance, number(s.First), number(s.Last), number(s.Position), number(s.Previous), s.Mark}, s.Chain...)...)
}

// ChangesReply answers AfterKey. Its state is that after the changes. With More, there are
// others after Position.
type ChangesReply struct {
	LogState
	More    bool     `json:"more"`
	Changes []Change `json:"recent_changes"`
}

// LostError reports that the requested changes are not available: another instance has
// numbered them, or they have left the log, or the instance has gone back in time and has no
// change with that number, or another one.
type LostError struct{ LogState }

func (e *LostError) Error() string {
	return fmt.Sprintf("its log of changes goes from %d to %d in instance %s", e.First, e.Last, e.Instance)
}

// AsLost returns the [*LostError] in an error; nil if there is none.
func AsLost(err error) *LostError {
	var lost *LostError
	errors.As(err, &lost)
	return lost
}

// ErrNoLog reports an instance without numbered changes: the original, or an older version.
var ErrNoLog = errors.New("it does not number its changes")

// ErrSilent reports that a stream was silent.
var ErrSilent = errors.New("nothing comes")

// ErrBusy reports that the instance allows no more streams. It may still send pages.
var ErrBusy = errors.New("too many instances follow its changes already")

// ErrDamaged reports an answer that differs from what was sent.
var ErrDamaged = errors.New("it was damaged on its way")

const (
	// maxChange is the length of the longest change: a narinfo, each byte escaped.
	maxChange = 6*narinfo.MaxSize + 4096
	// streamSilence is how long a stream may be silent. After that the connection is
	// broken, or a proxy buffers the events.
	streamSilence = 3 * StreamPulse
)

// Stream is a stream of an instance's changes, used by one goroutine at a time.
type Stream struct {
	body  io.ReadCloser
	lines *bufio.Reader
	state LogState
	sent  int64 // the last number
	err   error // the first error
}

// Known is the last known change of an instance.
type Known struct {
	// Instance is the one that numbers the changes; "" for any.
	Instance string
	Position int64
	// Mark is that of the change at the position; "" if unknown.
	Mark string
}

func (k Known) query() string {
	query := url.Values{AfterKey: {number(k.Position)}}
	if k.Instance != "" {
		query.Set(InstanceKey, k.Instance)
	}
	if k.Mark != "" {
		query.Set(MarkKey, k.Mark)
	}
	return query.Encode()
}

// Changes opens the stream of changes after the known ones. The error is [ErrNoLog],
// [ErrBusy], a [*LostError], or another. The caller closes the stream.
func (p *Peer) Changes(ctx context.Context, known Known) (*Stream, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	response, err := p.send(ctx, StreamPath+"?"+known.query())
	if err != nil {
		cancel(nil)
		var slow net.Error
		var dial *net.OpError
		if errors.As(err, &slow) && slow.Timeout() && !(errors.As(err, &dial) && dial.Op == "dial") {
			err = fmt.Errorf("%w: %w", ErrSilent, err) // a proxy buffers the header
		}
		return nil, fmt.Errorf("follow the changes of %s: %w", p, err)
	}
	body := newBody(response.Body, -1, p.silence(), cancel, p.name)
	body.least = 1 // between changes, only the pulse comes
	stream := &Stream{body: body, lines: bufio.NewReaderSize(body, 64<<10), sent: known.Position}
	if err := stream.begin(response); err != nil {
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		body.Close()
		return nil, fmt.Errorf("follow the changes of %s: %w", p, err)
	}
	return stream, nil
}

func (p *Peer) silence() time.Duration {
	if p.self.ProgressTimeout != progressTimeout {
		return p.self.ProgressTimeout // in a test
	}
	return streamSilence
}

// send sends a request for an answer that no cache may give.
func (p *Peer) send(ctx context.Context, path string) (*http.Response, error) {
	request, err := p.NewRequest(ctx, http.MethodGet, path)
	if err != nil {
		return nil, err
	}
	request.Header.Set("Cache-Control", "no-cache")
	return p.Do(request)
}

// begin checks the header of the answer and reads the first event.
func (s *Stream) begin(response *http.Response) error {
	switch response.StatusCode {
	case http.StatusOK:
	case http.StatusNotFound:
		return ErrNoLog
	case http.StatusGone:
		return readLost(response.Body)
	case http.StatusServiceUnavailable:
		return fmt.Errorf("%w: it answers %s", ErrBusy, response.Status)
	default:
		return fmt.Errorf("it answers %s", response.Status)
	}
	if kind := response.Header.Get("Content-Type"); kind != "text/event-stream" {
		return fmt.Errorf("%w: its Content-Type is %q", ErrAnswer, kind)
	}
	change, err := s.Next()
	if err == nil && change != nil {
		err = fmt.Errorf("%w: it doesn't begin with a state", ErrAnswer)
	}
	return err
}

// State returns the last state of the log that the instance has sent.
func (s *Stream) State() LogState { return s.state }

// Next waits for the next change. It returns nil for a new State. After an error, it returns
// the same error.
func (s *Stream) Next() (*Change, error) {
	if s.err != nil {
		return nil, s.err
	}
	change, err := s.next()
	s.err = err
	return change, err
}

func (s *Stream) next() (*Change, error) {
	var kind string
	var data []byte
	for {
		line, err := s.line()
		if err != nil {
			return nil, err
		}
		if len(line) > 0 {
			switch field, value, _ := bytes.Cut(line, []byte(": ")); string(field) {
			case "event":
				kind = string(value)
			case "data":
				data = append(data[:0], value...)
			}
			continue // also others, and comments
		}
		if data == nil {
			continue
		}
		switch kind {
		case StateEvent:
			var state LogState
			if len(data) > maxHead {
				return nil, fmt.Errorf("%w: its state has over %d bytes", ErrAnswer, maxHead)
			}
			if err := json.Unmarshal(data, &state); err != nil {
				return nil, fmt.Errorf("%w: %w", ErrAnswer, err)
			}
			if state.Sum != state.sum() {
				return nil, fmt.Errorf("the state of its log: %w", ErrDamaged)
			}
			if state.Previous != s.sent || state.Position < s.sent {
				return nil, fmt.Errorf("%w: its state is of %d, after %d, want %d", ErrAnswer, state.Position, state.Previous, s.sent)
			}
			s.state, s.sent = state, state.Position
			return nil, nil
		case ChangeEvent:
			change := new(Change)
			if err := json.Unmarshal(data, change); err != nil {
				return nil, fmt.Errorf("%w: %w", ErrAnswer, err)
			}
			if change.Sum != change.sum(s.state.Instance) {
				return nil, fmt.Errorf("change %d: %w", change.ID, ErrDamaged)
			}
			if change.Previous != s.sent || change.ID <= s.sent {
				return nil, fmt.Errorf("%w: change %d comes after %d, want %d", ErrAnswer, change.ID, change.Previous, s.sent)
			}
			s.sent = change.ID
			return change, nil
		}
		// It is from a later version, or damaged, which the next known event shows.
		kind, data = "", nil
	}
}

// Buffered reports whether part of the next event has come.
func (s *Stream) Buffered() bool { return s.lines.Buffered() > 0 }

// line reads a line, which is valid until the next call.
func (s *Stream) line() ([]byte, error) {
	var long []byte
	for {
		part, err := s.lines.ReadSlice('\n')
		switch {
		case err == nil && long == nil:
			return bytes.TrimSuffix(part[:len(part)-1], []byte("\r")), nil
		case err == nil:
			long = append(long, part[:len(part)-1]...)
			return bytes.TrimSuffix(long, []byte("\r")), nil
		case errors.Is(err, bufio.ErrBufferFull):
			if long = append(long, part...); len(long) > maxChange {
				return nil, fmt.Errorf("%w: it has a line of over %d bytes", ErrAnswer, maxChange)
			}
		case err == io.EOF:
			return nil, io.ErrUnexpectedEOF // it has no end
		default:
			return nil, err
		}
	}
}

// Close ends the stream.
func (s *Stream) Close() error { return s.body.Close() }
