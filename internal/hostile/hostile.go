// Package hostile is a malicious source for tests of mirrors. It implements the protocol of an
// instance, but sends any texts, names, numbers and files.
package hostile

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"time"

	"nar-herder/peer"
)

// Instance is the name of a source with numbered changes.
const Instance = "HOSTILE"

// Source is a server on loopback. Its methods may be called while it serves.
type Source struct {
	// URL is its address, without a slash at the end.
	URL string

	server *httptest.Server

	mu       sync.Mutex
	instance string
	changes  []peer.Change
	answers  map[string]http.HandlerFunc
	nar      []byte
	closed   chan struct{}
	changed  chan struct{} // closed when there are more changes
}

// New starts a source of numbered changes that has none yet.
func New() *Source {
	s := &Source{instance: Instance, answers: make(map[string]http.HandlerFunc), closed: make(chan struct{}), changed: make(chan struct{})}
	s.server = httptest.NewServer(http.HandlerFunc(s.serve))
	s.URL = s.server.URL
	return s
}

// Close stops the server and its requests.
func (s *Source) Close() {
	close(s.closed)
	s.server.CloseClientConnections()
	s.server.Close()
}

// Plain removes the numbers of changes, as in the original.
func (s *Source) Plain() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.instance = ""
}

// Answer sets the handler of a path.
func (s *Source) Answer(path string, answer http.HandlerFunc) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.answers[path] = answer
}

// Nar sets the answer to all other paths.
func (s *Source) Nar(content []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.nar = content
}

// Publish sets the answer to a path, with its digest.
func (s *Source) Publish(path string, content []byte) {
	sum := sha256.Sum256(content)
	digest := base64.StdEncoding.EncodeToString(sum[:])
	made := time.Unix(1_700_000_000, 0)
	s.Answer(path, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set(peer.DigestHeader, "sha-256=:"+digest+":")
		w.Header().Set("ETag", fmt.Sprintf("%q", digest[:12]))
		http.ServeContent(w, r, "", made, strings.NewReader(string(content)))
	})
}

// Add adds the addition of a text.
func (s *Source) Add(at time.Time, text string) { s.Tell(at, peer.Addition, text) }

// Tell adds a change of the given kind.
func (s *Source) Tell(at time.Time, kind, data string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	id := int64(len(s.changes)) + 1
	s.changes = append(s.changes, peer.Change{ID: id, Previous: id - 1, Datetime: at.UTC().Format(time.DateTime), Change: kind, Data: data})
	close(s.changed)
	s.changed = make(chan struct{})
}

func (s *Source) serve(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	answer, instance, nar := s.answers[r.URL.Path], s.instance, s.nar
	s.mu.Unlock()
	query := r.URL.Query()
	switch {
	case answer != nil:
		answer(w, r)
	case r.URL.Path == peer.StreamPath && instance != "":
		s.stream(w, r, query.Get(peer.AfterKey))
	case r.URL.Path == peer.ChangesPath && query.Has(peer.AfterKey) && instance != "":
		s.page(w, query.Get(peer.AfterKey))
	case r.URL.Path == peer.ChangesPath && query.Has(peer.SinceKey):
		s.since(w)
	case nar != nil && !strings.HasPrefix(r.URL.Path, peer.ChangesPath):
		http.ServeContent(w, r, "", time.Time{}, strings.NewReader(string(nar)))
	default:
		http.NotFound(w, r)
	}
}

// behind returns the changes after a number, and the state after them.
func (s *Source) behind(after string) (changes []peer.Change, state peer.LogState, more <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var position int64
	_, _ = fmt.Sscan(after, &position) // from the beginning if invalid
	last := int64(len(s.changes))
	changes = []peer.Change{}
	position = min(max(position, 0), last)
	for _, change := range s.changes[position:] {
		change.Seal(s.instance)
		changes = append(changes, change)
	}
	state = peer.LogState{Instance: s.instance, First: 1, Last: last, Position: last, Previous: last}
	state.Seal()
	return changes, state, s.changed
}

// page answers with all changes by their numbers.
func (s *Source) page(w http.ResponseWriter, after string) {
	changes, state, _ := s.behind(after)
	reply(w, peer.ChangesReply{LogState: state, Changes: changes})
}

// since answers with all changes by their times, whatever the time in the request.
func (s *Source) since(w http.ResponseWriter) {
	s.mu.Lock()
	defer s.mu.Unlock()
	changes := []peer.Change{}
	for _, c := range s.changes {
		changes = append(changes, peer.Change{Datetime: c.Datetime, Change: c.Change, Data: c.Data})
	}
	reply(w, map[string]any{"recent_changes": changes})
}

func reply(w http.ResponseWriter, answer any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(answer) // the client may have left
}

// stream sends changes as they are added.
func (s *Source) stream(w http.ResponseWriter, r *http.Request, after string) {
	w.Header().Set("Content-Type", "text/event-stream")
	event := func(name string, data any) {
		text, err := json.Marshal(data)
		if err != nil {
			panic(err) // structs of strings and numbers can't fail
		}
		fmt.Fprintf(w, "event: %s\ndata: %s\n\n", name, text)
	}
	for first := true; ; first = false {
		changes, state, more := s.behind(after)
		if first {
			begin := state
			begin.Position, begin.Previous = begin.Position-int64(len(changes)), begin.Previous-int64(len(changes))
			begin.Seal()
			event(peer.StateEvent, begin)
		}
		for _, change := range changes {
			event(peer.ChangeEvent, change)
			after = fmt.Sprint(change.ID)
		}
		event(peer.StateEvent, state)
		if http.NewResponseController(w).Flush() != nil {
			return
		}
		select {
		case <-more:
		case <-r.Context().Done():
			return
		case <-s.closed:
			return
		}
	}
}
