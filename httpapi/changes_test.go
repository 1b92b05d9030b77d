package httpapi

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"nar-herder/httpapi/peerapi"
	"nar-herder/narinfo"
	"nar-herder/peer"
	"nar-herder/storage/index"
)

// change records a change of an item at a time.
func (s *store) change(t testing.TB, base string, kind index.ChangeKind, at time.Time) {
	t.Helper()
	path, err := narinfo.ParseBaseName(base)
	if err != nil {
		t.Fatal(err)
	}
	change := index.Change{At: at, Kind: kind, Hash: path.Hash}
	if kind == index.Removed {
		change.StorePath = path.String()
	}
	if err := s.index.Update(t.Context(), func(tx *index.Tx) error { return tx.PutChange(change) }); err != nil {
		t.Fatal(err)
	}
}

// startPublishing serves a store with a greeting, and its changes.
func startPublishing(t *testing.T) (*started, *store) {
	s := newStore(t, published+"/"+hashOf(greeting)+".narinfo")
	o := options()
	o.Changes, o.Identity = s.index, s
	server := start(t, s, o)
	watcher, err := s.index.Watch(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		server.Follow(ctx, watcher)
	}()
	t.Cleanup(func() {
		stop()
		<-ended
		watcher.Close()
	})
	return server, s
}

func TestRecentChanges(t *testing.T) {
	t.Parallel()
	server, s := startPublishing(t)
	text := contents(t, published, hashOf(greeting)+".narinfo")
	at := time.Now().UTC().Add(time.Hour).Truncate(time.Second)
	s.change(t, hello, index.Removed, at)
	s.change(t, greeting, index.Added, at.Add(1500*time.Millisecond))
	s.change(t, greeting, index.StorageChanged, at.Add(2*time.Second))
	c := dial(t, server.address)
	type listed struct {
		Changes []map[string]any `json:"recent_changes"`
	}
	first := map[string]any{"datetime": at.Format(time.DateTime), "change": "removal", "data": "/gnu/store/" + hello}
	second := map[string]any{"datetime": at.Add(time.Second).Format(time.DateTime), "change": "addition", "data": text}
	for since, want := range map[string][]map[string]any{
		at.Format(time.DateTime):                               {first, second},
		strings.Replace(at.Format(time.DateTime), " ", "T", 1): {first, second},
		at.Add(time.Second).Format(time.DateTime):              {second},
		at.Add(2 * time.Second).Format(time.DateTime):          {},
	} {
		for _, query := range []string{strings.ReplaceAll(url.QueryEscape(since), "+", "%20"), url.QueryEscape(since)} {
			a := c.ask("GET", "/recent-changes?since="+query)
			var got listed
			if err := json.Unmarshal([]byte(a.body), &got); err != nil || a.StatusCode != http.StatusOK || a.err != nil || a.Header.Get("Content-Type") != "application/json" {
				t.Fatalf("%s: %s %q, %v, %v", query, a.Status, a.body, err, a.err)
			}
			if fmt.Sprint(got.Changes) != fmt.Sprint(want) {
				t.Errorf("since %s: %v, want %v", query, got.Changes, want)
			}
		}
	}
	for _, query := range []string{"", "?since=", "?since=yesterday", "?after=", "?after=x", "?after=-1"} {
		if a := c.ask("GET", "/recent-changes"+query); a.StatusCode != http.StatusBadRequest {
			t.Errorf("%s: %s", query, a.Status)
		}
	}
	if a := c.ask("HEAD", "/recent-changes?since="+url.QueryEscape(at.Format(time.DateTime))); a.StatusCode != http.StatusOK || a.body != "" {
		t.Errorf("HEAD: %s %q", a.Status, a.body)
	}
	c.stillOpen()

	var reply peer.ChangesReply
	a := c.ask("GET", "/recent-changes?after=1")
	if err := json.Unmarshal([]byte(a.body), &reply); err != nil || reply.Instance != s.Instance() || reply.Position != 4 || reply.Last != 4 || reply.First != 1 ||
		len(reply.Changes) != 2 || reply.Changes[0].ID != 2 || reply.Changes[1].ID != 3 || reply.More {
		t.Errorf("after 1: %s %s, %v", a.Status, a.body, err)
	}
	for _, query := range []string{"?after=5", "?after=1&instance=other"} {
		for _, path := range []string{"/recent-changes", "/recent-changes/stream"} {
			if a := c.ask("GET", path+query); a.StatusCode != http.StatusGone || !strings.Contains(a.body, s.Instance()) {
				t.Errorf("%s%s: %s %q", path, query, a.Status, a.body)
			}
		}
	}
	if a := c.ask("GET", "/recent-changes/stream"); a.StatusCode != http.StatusBadRequest {
		t.Errorf("a stream from nowhere: %s", a.Status)
	}
	if a := c.ask("HEAD", "/recent-changes/stream?after=1"); a.StatusCode != http.StatusOK || a.body != "" {
		t.Errorf("HEAD of a stream: %s %q", a.Status, a.body)
	}
	if n := server.peers.Streams(); n != 0 {
		t.Errorf("%d streams are counted", n)
	}
}

// TestManyChanges: an answer of several pages is one list.
func TestManyChanges(t *testing.T) {
	t.Parallel()
	server, s := startPublishing(t)
	at := time.Date(2040, 1, 1, 0, 0, 0, 0, time.UTC)
	err := s.index.Update(t.Context(), func(tx *index.Tx) error {
		for n := range 5*peerapi.PageSize + 3 {
			path, err := narinfo.ParseBaseName(fmt.Sprintf("%032d-x", n))
			if err != nil {
				return err
			}
			if err := tx.PutChange(index.Change{At: at, Kind: index.Removed, Hash: path.Hash, StorePath: path.String()}); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	base := &url.URL{Scheme: "http", Host: server.address}
	n := 0
	err = peer.New(base, peer.Self{}).ChangesSince(t.Context(), at, func(c peer.Change) error {
		if want := fmt.Sprintf("/gnu/store/%032d-x", n); c.Data != want || c.Change != peer.Removal {
			return fmt.Errorf("change %d is %+v", n, c)
		}
		n++
		return nil
	})
	if err != nil || n != 5*peerapi.PageSize+3 {
		t.Errorf("%d changes, %v", n, err)
	}
}

// TestStream: the stream has changes as they happen, whichever process makes them, and a
// server that stops does not wait for its readers.
func TestStream(t *testing.T) {
	t.Parallel()
	server, s := startPublishing(t)
	base := &url.URL{Scheme: "http", Host: server.address}
	stream, err := peer.New(base, peer.Self{}).Changes(t.Context(), peer.Known{Instance: s.Instance()})
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Close()
	next := func() *peer.Change {
		for {
			c, err := stream.Next()
			if err != nil {
				t.Fatal(err)
			}
			if c != nil {
				return c
			}
		}
	}
	if c := next(); c.ID != 1 || c.Data != contents(t, published, hashOf(greeting)+".narinfo") {
		t.Errorf("the first change: %+v", c)
	}
	other, err := index.Open(t.Context(), s.database, index.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	begun := time.Now()
	err = other.Update(t.Context(), func(tx *index.Tx) error {
		path, err := narinfo.ParseBaseName(hello)
		if err != nil {
			return err
		}
		return tx.PutChange(index.Change{At: time.Now(), Kind: index.Removed, Hash: path.Hash, StorePath: path.String()})
	})
	if err != nil {
		t.Fatal(err)
	}
	if c := next(); c.ID != 2 || c.Change != peer.Removal || c.Data != "/gnu/store/"+hello {
		t.Errorf("the next change: %+v", c)
	}
	t.Logf("published after %v", time.Since(begun))
	if c, err := stream.Next(); err != nil || c != nil || stream.State().Position != 2 || stream.State().Last != 2 {
		t.Errorf("then %+v, %v, %+v; want the state", c, err, stream.State())
	}
	if n := server.peers.Streams(); n != 1 {
		t.Errorf("%d streams are counted", n)
	}
	server.stop()
	select {
	case err := <-server.ended:
		server.ended <- err
	case <-time.After(patience):
		t.Fatal("the server waits for the stream")
	}
	if c, err := stream.Next(); err == nil {
		t.Errorf("after the end: %+v", c)
	}
	until(t, "the stream to be counted as ended", func() bool { return server.peers.Streams() == 0 })
}

// TestChangesAhead: a change with a time in the future is published with the current time, so
// that mirrors that follow by time don't miss later changes.
func TestChangesAhead(t *testing.T) {
	t.Parallel()
	server, s := startPublishing(t)
	s.change(t, hello, index.Removed, time.Now().AddDate(1, 0, 0))
	c := dial(t, server.address)
	for _, query := range []string{"?after=1", "?since=" + url.QueryEscape(time.Now().UTC().Format(time.DateTime))} {
		a := c.ask("GET", "/recent-changes"+query)
		var reply peer.ChangesReply
		if err := json.Unmarshal([]byte(a.body), &reply); err != nil || len(reply.Changes) == 0 || reply.Changes[len(reply.Changes)-1].Change != peer.Removal {
			t.Fatalf("%s: %s %q, %v", query, a.Status, a.body, err)
		}
		for _, change := range reply.Changes {
			if at, err := time.Parse(time.DateTime, change.Datetime); err != nil || at.After(time.Now().Add(time.Hour)) {
				t.Errorf("%s: a change of %s, %v", query, at, err)
			}
		}
	}
}
