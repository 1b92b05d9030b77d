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

// How an instance tells of changes. The original knows the first path alone, and
// there the query parameter [SinceKey] alone; it believes that of spec 3:
//
//	{"recent_changes": [{"datetime", "change", "data"}, …]}
//
// with the changes of that datetime or later, the oldest first. This program also
// numbers changes without gaps and answers [AfterKey] with a [ChangesReply], and
// StreamPath with a stream of them as server-sent events
// (https://html.spec.whatwg.org/multipage/server-sent-events.html) that doesn't
// end: the log's state at first and every [StreamPulse], in an event
// [StateEvent], and each change as it comes, in an event [ChangeEvent].
const (
	ChangesPath = "/recent-changes"
	StreamPath  = "/recent-changes/stream"
	// SinceKey has a datetime.
	SinceKey = "since"
	// AfterKey has the number of the last change that is known, and InstanceKey
	// the name of the instance that gave it that number.
	AfterKey    = "after"
	InstanceKey = "instance"
	// MarkKey has the mark of that change, if it is known.
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
	// Datetime is when it was made where it was made first, in UTC, as
	// [time.DateTime] has it.
	Datetime string `json:"datetime"`
	Change   string `json:"change"`
	Data     string `json:"data"`
	// ID is its number; 0 from the original, which has none of what follows.
	ID int64 `json:"id,omitempty"`
	// Previous is up to where all was told before: the number asked for, or that
	// of the change or state before. So none can get lost on its way unnoticed.
	Previous int64 `json:"previous,omitempty"`
	// Mark is what tells the change from another with the same number, as there
	// is after a backup was put back.
	Mark string `json:"mark,omitempty"`
	// Sum tells whether it has come as it was sent; see [Change.Seal].
	Sum string `json:"sum,omitempty"`
}

// Size is about what the change takes in memory, in bytes.
func (c *Change) Size() int {
	return len(c.Datetime) + len(c.Change) + len(c.Data) + len(c.Mark) + len(c.Sum)
}

// Seal sets the sum of a change that the instance tells.
func (c *Change) Seal(instance string) { c.Sum = c.sum(instance) }

func (c *Change) sum(instance string) string {
	return sum(instance, number(c.ID), number(c.Previous), c.Mark, c.Datetime, c.Change, c.Data)
}

func number(n int64) string { return strconv.FormatInt(n, 10) }

// sum is a digest of words. TCP's own is too weak for what is kept for years,
// and proxies and disks are between.
func sum(words ...string) string {
	digest := sha256.New()
	for _, word := range words {
		fmt.Fprintf(digest, "%d:%s,", len(word), word)
	}
	return hex.EncodeToString(digest.Sum(nil)[:16])
}

// LogState is the state of an instance's log of changes.
type LogState struct {
	// Instance is the random name of the instance, whose numbers these are.
	Instance string `json:"instance"`
	// First is the oldest change that is still told, and Last the newest that
	// there has been; up to Position all has been told.
	First    int64 `json:"first"`
	Last     int64 `json:"last"`
	Position int64 `json:"position"`
	// Previous and Mark are as in [Change], of the Position.
	Previous int64  `json:"previous"`
	Mark     string `json:"mark"`
	// Chain are the instances that this one mirrors, itself or through others.
	Chain []string `json:"chain,omitempty"`
	Sum   string   `json:"sum"`
}

// Seal sets the sum.
func (s *LogState) Seal() { s.Sum = s.sum() }

func (s *LogState) sum() string {
	return sum(append([]string{s.Instance, number(s.First), number(s.Last), number(s.Position), number(s.Previous), s.Mark}, s.Chain...)...)
}

// ChangesReply answers AfterKey. Its state is that behind the changes. With More,
// there are others behind Position.
type ChangesReply struct {
	LogState
	More    bool     `json:"more"`
	Changes []Change `json:"recent_changes"`
}

// LostError says that the changes that were asked for can't be told: the
// instance is another than the one that gave the number, or they have left its
// log, or it has not come to that number yet, or has another change with it, so that
// it has gone back in time.
type LostError struct{ LogState }

func (e *LostError) Error() string {
	return fmt.Sprintf("its log of changes goes from %d to %d in instance %s", e.First, e.Last, e.Instance)
}

// AsLost returns the [*LostError] that an error is; nil when it is none.
func AsLost(err error) *LostError {
	var lost *LostError
	errors.As(err, &lost)
	return lost
}

// ErrNoLog says that the instance has no log with numbers: it is the original, or
// an older version.
var ErrNoLog = errors.New("it tells no changes by their numbers")

// ErrSilent says that nothing came, where something should all the time.
var ErrSilent = errors.New("nothing comes")

// ErrBusy says that the instance has no room for one more stream of its changes. It may
// answer with pages of them.
var ErrBusy = errors.New("too many follow its changes already")

// ErrDamaged says that an answer has not come as it was sent.
var ErrDamaged = errors.New("it was damaged on its way")

const (
	// maxChange is how long a change can be: a narinfo, each byte of which may
	// have been escaped.
	maxChange = 6*narinfo.MaxSize + 4096
	// streamSilence is for how long a stream can be silent: then the connection
	// is gone, or something on the way holds events back.
	streamSilence = 3 * StreamPulse
)

// Stream is a stream of an instance's changes, used by one goroutine at a time.
type Stream struct {
	body  io.ReadCloser
	lines *bufio.Reader
	state LogState
	told  int64 // up to where all has been told
	err   error // of all calls from the first that failed on
}

// Known is up to where the changes of an instance are known.
type Known struct {
	// Instance is whose changes they are; "" for any.
	Instance string
	Position int64
	// Mark is that of the change at the position; "" when it is not known.
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

// Changes opens the stream of changes behind those that are known. The error is [ErrNoLog],
// [ErrBusy], a [*LostError], or another when none of that is known. The stream is the caller's
// to close.
func (p *Peer) Changes(ctx context.Context, known Known) (*Stream, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	response, err := p.send(ctx, StreamPath+"?"+known.query())
	if err != nil {
		cancel(nil)
		var slow net.Error
		var dial *net.OpError
		if errors.As(err, &slow) && slow.Timeout() && !(errors.As(err, &dial) && dial.Op == "dial") {
			err = fmt.Errorf("%w: %w", ErrSilent, err) // something holds the head back
		}
		return nil, fmt.Errorf("follow the changes of %s: %w", p, err)
	}
	body := newBody(response.Body, -1, p.silence(), cancel, p.name)
	body.least = 1 // between changes, only the pulse comes
	stream := &Stream{body: body, lines: bufio.NewReaderSize(body, 64<<10), told: known.Position}
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

// send sends a request whose answer is not read here.
func (p *Peer) send(ctx context.Context, path string) (*http.Response, error) {
	request, err := p.NewRequest(ctx, http.MethodGet, path)
	if err != nil {
		return nil, err
	}
	request.Header.Set("Cache-Control", "no-cache")
	return p.Do(request)
}

// begin looks at the head of the answer and reads the first event.
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

// State is what the instance has told last of its log.
func (s *Stream) State() LogState { return s.state }

// Next waits for the next change. It returns nil when there is a new State
// instead. After an error the stream is of no more use, and Next returns the same.
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
			if state.Previous != s.told || state.Position < s.told {
				return nil, fmt.Errorf("%w: its state is of %d, behind %d, where %d had been told", ErrAnswer, state.Position, state.Previous, s.told)
			}
			s.state, s.told = state, state.Position
			return nil, nil
		case ChangeEvent:
			change := new(Change)
			if err := json.Unmarshal(data, change); err != nil {
				return nil, fmt.Errorf("%w: %w", ErrAnswer, err)
			}
			if change.Sum != change.sum(s.state.Instance) {
				return nil, fmt.Errorf("change %d: %w", change.ID, ErrDamaged)
			}
			if change.Previous != s.told || change.ID <= s.told {
				return nil, fmt.Errorf("%w: change %d comes behind %d, where %d had been told", ErrAnswer, change.ID, change.Previous, s.told)
			}
			s.told = change.ID
			return change, nil
		}
		// Of a kind that is to come, or one that was damaged, which the next
		// that is known will tell.
		kind, data = "", nil
	}
}

// Buffered says whether the next event has come, at least in part.
func (s *Stream) Buffered() bool { return s.lines.Buffered() > 0 }

// line reads a line, which is good until the next.
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
