package httpapi

import (
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"

	"nar-herder/narinfo"
	"nar-herder/peer"
	"nar-herder/storage"
	"nar-herder/storage/bytestore"
)

// countedUses counts calls of Used.
type countedUses struct{ n atomic.Int64 }

func (u *countedUses) Used(narinfo.PathHash, string) { u.n.Add(1) }

// TestCountedOnce: a request that is answered again, because the item was replaced after its
// row was read, is one use.
func TestCountedOnce(t *testing.T) {
	t.Parallel()
	m := make1(t, "x", "content", "gzip")
	items := m.items(t)
	item, open := items.item, items.open
	var changed atomic.Bool
	items.item = func(hash narinfo.PathHash) (*storage.Item, error) {
		now, err := item(hash)
		if err == nil && changed.Load() {
			row := *now.Item
			row.Text = append(row.Text, "Note: signed anew\n"...)
			now, err = storage.NewItem(&row)
		}
		return now, err
	}
	items.open = func(item *storage.Item, n int, offset, length int64) (io.ReadCloser, bytestore.Info, error) {
		if changed.CompareAndSwap(false, true) {
			return nil, bytestore.Info{}, storage.ErrMismatch
		}
		return open(item, n, offset, length)
	}
	counted := new(countedUses)
	opts := options()
	opts.Uses = counted
	c := dial(t, start(t, items, opts).address)
	for want := int64(1); want <= 2; want++ { // also the request after it on the same connection
		if got := c.ask("GET", "/"+m.url()); got.StatusCode != 200 || got.body != string(m.file) {
			t.Fatalf("%s", got.Status)
		}
		if got := counted.n.Load(); got != want {
			t.Errorf("%d uses, want %d", got, want)
		}
	}
	if !changed.Load() {
		t.Error("nothing has changed")
	}
}

// TestNameIsRead: answering other instances writes nothing into the storage.
func TestNameIsRead(t *testing.T) {
	t.Parallel()
	s := newStore(t, published)
	opts := options()
	opts.Identity = s.Storage
	c := dial(t, start(t, s, opts).address)
	hash := hashOf(hello)
	ask := func(want string) {
		t.Helper()
		got := c.ask("GET", "/"+hash+".narinfo/info")
		if got.StatusCode != 200 || got.Header.Get("Nar-Herder-Storage") != want {
			t.Errorf("%s: the storage is named %q, want %q", got.Status, got.Header.Get("Nar-Herder-Storage"), want)
		}
		var reply peer.StoredReply
		got = c.ask("GET", peer.StoredPath+hash)
		if err := json.Unmarshal([]byte(got.body), &reply); err != nil || reply.Storage != want || reply.StorageUnknown != (want == "") {
			t.Errorf("%s: %+v, %v", got.Status, reply, err)
		}
	}
	note := filepath.Join(s.directory, bytestore.IdentityName)
	if err := os.Remove(note); err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	ask("")
	if _, err := os.Stat(note); !os.IsNotExist(err) {
		t.Errorf("a question has named the storage: %v", err)
	}
	name, err := s.Identity(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ask(name)
}
