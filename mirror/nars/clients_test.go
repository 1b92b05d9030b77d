package nars

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"nar-herder/internal/testfs"
	"nar-herder/narinfo"
	"nar-herder/peer"
	"nar-herder/peer/failover"
	"nar-herder/peer/passing"
	"nar-herder/storage"
	"nar-herder/storage/bytestore"
	"nar-herder/storage/index"
	"nar-herder/storage/narcheck"
)

// gate makes a source send a file up to an offset, and the rest when the gate is opened.
type gate struct {
	content []byte
	at      int
	open    chan struct{}
}

func newGate(content []byte, at int) *gate { return &gate{content, at, make(chan struct{})} }

func (g *gate) answer(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Length", strconv.Itoa(len(g.content)))
	for sent := 0; sent < g.at; sent += 10_000 {
		_, _ = w.Write(g.content[sent:min(sent+10_000, g.at)])
	}
	w.(http.Flusher).Flush()
	select {
	case <-g.open:
	case <-r.Context().Done():
		return
	}
	_, _ = w.Write(g.content[g.at:])
}

// patient makes a fetcher that tolerates a slow source.
func (m *mirror) patient(from *source, options Options) *Fetcher {
	f := m.fetcher(from, options)
	p, err := peer.ParseURL(from.URL)
	if err != nil {
		m.t.Fatal(err)
	}
	f.source = failover.Of(peer.New(p, peer.Self{Instance: m.Instance()}))
	f.options.Passing = passing.New(f.source, 0)
	return f
}

// TestClients: a missing nar that many clients request is fetched once, whenever clients
// leave.
func TestClients(t *testing.T) {
	t.Parallel()
	item := spec{n: 1, size: 2 << 20, kinds: []string{"none"}}.make(t)
	content := item.files[item.names[0]]
	from := newSource(t, item)
	g := newGate(content, len(content)/2)
	from.first(item.names[0], g.answer)
	m := newMirror(t, item)
	f := m.patient(from, Options{})
	known := m.item(item)
	const count = 50
	var clients sync.WaitGroup
	var half atomic.Int32
	for c := range count {
		clients.Go(func() {
			offset, length := rand.N(int64(len(content)/2)), int64(-1)
			want := content[offset:]
			if c%5 == 0 {
				length = rand.N(int64(len(content)) - offset)
				want = want[:length]
			}
			body, size, err := f.OpenFile(t.Context(), known, 0, offset, length, nil)
			if err != nil || size != int64(len(content)) {
				t.Errorf("open: %d, %v", size, err)
				return
			}
			defer body.Close()
			if c%3 == 1 {
				_, err := io.CopyN(io.Discard, body, min(rand.N(int64(len(content)/2)-offset), int64(len(want))))
				if err != nil {
					t.Error(err)
				}
				half.Add(1)
				return // leave
			}
			first := make([]byte, min(int64(len(want)), int64(len(content)/2)-offset))
			if _, err := io.ReadFull(body, first); err != nil {
				t.Error(err)
			}
			half.Add(1)
			rest, err := io.ReadAll(body)
			if err != nil || !bytes.Equal(append(first, rest...), want) {
				t.Errorf("client %d got %d bytes, %v, or others; %d are right", c, len(first)+len(rest), err, len(want))
			}
		})
	}
	until(t, "all have read a half", func() bool { return half.Load() == count })
	close(g.open)
	clients.Wait()
	m.wantStored(item)
	until(t, "nothing is in download", func() bool { return f.Status().InFlight == 0 })
	m.wantConsistent()
	if asked := from.asked(); len(asked) != 1 {
		t.Errorf("requests: %q", asked)
	}
	// A client with the old row gets the stored file.
	body, _, err := f.OpenFile(t.Context(), known, 0, 5, -1, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer body.Close()
	if _, local := body.(bytestore.LocalFile); !local || len(from.asked()) != 1 {
		t.Errorf("it is %T, requests %q", body, from.asked())
	}
}

// TestFetching: the nars that are being fetched are listed with their progress, those for clients
// first.
func TestFetching(t *testing.T) {
	t.Parallel()
	items := many(t, 4, 1<<20)
	items[2] = spec{n: 2, size: 1 << 20, unsized: true}.make(t)
	from := newSource(t, items...)
	var gates []*gate
	for _, item := range items {
		content := item.files[item.names[0]]
		g := newGate(content, len(content)/2)
		gates = append(gates, g)
		from.first(item.names[0], g.answer)
	}
	m := newMirror(t, items...)
	f := m.patient(from, Options{All: true, AtOnce: len(items)}) // one waits for the download of the client
	if all := f.Fetching(10); len(all) != 0 {
		t.Errorf("before: %+v", all)
	}
	var client sync.WaitGroup
	client.Go(func() {
		if body, _, err := f.OpenFile(t.Context(), m.item(items[3]), 0, 0, -1, nil); err != nil {
			t.Error(err)
		} else {
			body.Close()
		}
	})
	until(t, "the client's is being fetched", func() bool { return len(f.Fetching(10)) == 1 })
	run(t, f)
	until(t, "a part of all has arrived", func() bool {
		all := f.Fetching(10)
		for _, one := range all {
			if one.Have == 0 {
				return false
			}
		}
		return len(all) == 4
	})
	for at, one := range f.Fetching(10) {
		item := items[[]int{3, 0, 1, 2}[at]]
		size := int64(len(item.files[item.names[0]]))
		if one.Path.Hash != item.hash() || one.File != item.names[0] || one.OnDemand != (at == 0) || one.Size != size || one.Have > size/2 {
			t.Errorf("%d: %+v, of %d bytes", at, one, size)
		}
	}
	if few := f.Fetching(1); len(few) != 1 || !few[0].OnDemand {
		t.Errorf("the first: %+v", few)
	}
	for _, g := range gates {
		close(g.open)
	}
	client.Wait()
	m.wantStored(items...)
	until(t, "none is listed", func() bool { return len(f.Fetching(10)) == 0 })
}

// TestAllLeave: a nar is stored even if all clients leave.
func TestAllLeave(t *testing.T) {
	t.Parallel()
	item := spec{n: 1, size: 1 << 20}.make(t)
	content := item.files[item.names[0]]
	from := newSource(t, item)
	g := newGate(content, len(content)/2)
	from.first(item.names[0], g.answer)
	m := newMirror(t, item)
	f := m.patient(from, Options{})
	ctx, cancel := context.WithCancel(t.Context())
	body, _, err := f.OpenFile(ctx, m.item(item), 0, 0, -1, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.CopyN(io.Discard, body, 1000); err != nil {
		t.Fatal(err)
	}
	cancel()
	if _, err := io.Copy(io.Discard, body); !errors.Is(err, context.Canceled) {
		t.Errorf("a client that has left reads on: %v", err)
	}
	body.Close()
	body.Close()
	close(g.open)
	m.wantStored(item)
}

// TestTail: if the source sends a wrong nar, clients get nothing of a small one, and not
// the end of a large one.
func TestTail(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{"gzip", "none"} {
		for _, size := range []int{1000, 60_000, 500_000} {
			t.Run(fmt.Sprint(kind, size), func(t *testing.T) {
				t.Parallel()
				item := spec{n: 1, size: size, kinds: []string{kind}}.make(t)
				content := bytes.Clone(item.files[item.names[0]])
				content[len(content)-2] ^= 1
				from := newSource(t, item)
				g := newGate(content, len(content)-1)
				from.first(item.names[0], g.answer)
				m := newMirror(t, item)
				f := m.patient(from, Options{})
				type opened struct {
					body io.ReadCloser
					err  error
				}
				answered := make(chan opened, 1)
				go func() {
					body, _, err := f.OpenFile(t.Context(), m.item(item), 0, 0, -1, nil)
					answered <- opened{body, err}
				}()
				until(t, "all but a byte has come", func() bool {
					for _, size := range m.spooled() {
						return size == int64(len(content)-1)
					}
					return false
				})
				if size < tail {
					select {
					case <-answered:
						t.Error("it is answered before all has come")
					default:
					}
					close(g.open)
					if got := <-answered; !errors.Is(got.err, narcheck.ErrWrongNar) {
						t.Errorf("%v", got.err)
					}
				} else {
					got := <-answered
					if got.err != nil {
						t.Fatal(got.err)
					}
					defer got.body.Close()
					begin := make([]byte, len(content)-tail)
					if _, err := io.ReadFull(got.body, begin); err != nil || !bytes.Equal(begin, content[:len(begin)]) {
						t.Errorf("the beginning: %v", err)
					}
					close(g.open)
					if rest, err := io.ReadAll(got.body); len(rest) > 0 || !errors.Is(err, narcheck.ErrWrongNar) {
						t.Errorf("%d bytes of the end, %v", len(rest), err)
					}
				}
				if m.stored(item) || len(m.spooled()) != 0 {
					t.Errorf("stored: %v, spool %v", m.stored(item), m.spooled())
				}
				m.wantConsistent()
				// The next client gets it.
				read(t, f, m.item(item), item.files[item.names[0]])
				m.wantStored(item)
			})
		}
	}
}

// read reads a file as a client, and asserts its content.
func read(t testing.TB, f *Fetcher, item *storage.Item, want []byte) {
	t.Helper()
	body, _, err := f.OpenFile(t.Context(), item, 0, 0, -1, nil)
	if err != nil {
		t.Errorf("open: %v", err)
		return
	}
	defer body.Close()
	if got, err := io.ReadAll(body); err != nil || !bytes.Equal(got, want) {
		t.Errorf("%d bytes, %v; want %d", len(got), err, len(want))
	}
}

// TestClientFaults: the source fails while a client waits.
func TestClientFaults(t *testing.T) {
	t.Parallel()
	item := spec{n: 1, size: 200_000}.make(t)
	content := item.files[item.names[0]]
	for name, test := range answers(content) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			from := newSource(t, item)
			from.first(item.names[0], test.first...)
			m := newMirror(t, item)
			f := m.fetcher(from, Options{})
			body, _, err := f.OpenFile(t.Context(), m.item(item), 0, 0, -1, nil)
			if err == nil {
				var got []byte
				got, err = io.ReadAll(body)
				body.Close()
				if err == nil && !bytes.Equal(got, content) || len(got) == len(content) && err != nil {
					t.Errorf("%d bytes, %v: a whole answer of wrong bytes", len(got), err)
				}
			}
			if (err == nil) != (test.reason == "") && test.reason != "any" && name != "cut, then wrong" {
				t.Errorf("%v; the reason should be %q", err, test.reason)
			}
			if name == "404" && !errors.Is(err, storage.ErrNotStored) {
				t.Errorf("%v", err)
			}
			// It is fetched in the background.
			run(t, f)
			m.wantStored(item)
		})
	}
}

// TestFarAhead: clients request the end of a nar when its download has just begun, and
// others its beginning.
func TestFarAhead(t *testing.T) {
	t.Parallel()
	item := spec{n: 1, size: farAhead + 1<<20, kinds: []string{"none"}}.make(t)
	content := item.files[item.names[0]]
	offset := int64(farAhead + 1000)
	from := newSource(t, item)
	m := newMirror(t, item)
	f := m.patient(from, Options{})
	const length = 100_000
	wantEnd := func() {
		t.Helper()
		body, size, err := f.OpenFile(t.Context(), m.item(item), 0, offset, length, nil)
		if err != nil || size != int64(len(content)) {
			t.Fatal(size, err)
		}
		defer body.Close()
		if got, err := io.ReadAll(body); err != nil || !bytes.Equal(got, content[offset:offset+length]) {
			t.Errorf("%d bytes, %v", len(got), err)
		}
	}
	wantEnd()
	if status := f.Status(); status.InFlight != 0 {
		t.Errorf("%+v", status)
	}
	g := newGate(content, 100)
	from.first(item.names[0], g.answer)
	body, _, err := f.OpenFile(t.Context(), m.item(item), 0, 0, -1, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer body.Close()
	wantEnd()
	// The end can't be verified without the rest, which is fetched once.
	end, _, err := f.OpenFile(t.Context(), m.item(item), 0, offset, -1, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer end.Close()
	close(g.open)
	if got, err := io.ReadAll(end); err != nil || !bytes.Equal(got, content[offset:]) {
		t.Errorf("the end: %d bytes, %v", len(got), err)
	}
	m.wantStored(item)
	ranged := fmt.Sprintf("%s bytes=%d-%d", item.names[0], offset, offset+length-1)
	if got, want := from.asked(), []string{ranged, item.names[0], ranged}; !slices.Equal(got, want) {
		t.Errorf("requests %q, want %q", got, want)
	}
}

// TestThrough: a request that another instance forwarded doesn't wait for a download that
// may wait for that instance.
func TestThrough(t *testing.T) {
	t.Parallel()
	item := spec{n: 1, size: 500_000, kinds: []string{"none"}}.make(t)
	content := item.files[item.names[0]]
	from := newSource(t, item)
	m := newMirror(t, item)
	f := m.patient(from, Options{})
	answering, via := make(chan struct{}), make(chan []string, 2)
	from.first(item.names[0], func(w http.ResponseWriter, r *http.Request) {
		via <- r.Header.Values(peer.ViaHeader)
		<-answering
		newGate(content, len(content)).answer(w, r)
	}, func(w http.ResponseWriter, r *http.Request) {
		via <- r.Header.Values(peer.ViaHeader)
		http.NotFound(w, r)
	})
	done := make(chan struct{})
	go func() {
		defer close(done)
		read(t, f, m.item(item), content)
	}()
	own := "1.1 nar-herder-" + m.Instance()
	if got := <-via; !slices.Equal(got, []string{own}) {
		t.Errorf("the download's way is %q", got)
	}
	other := []string{"1.1 nar-herder-other"}
	if _, _, err := f.OpenFile(t.Context(), m.item(item), 0, 0, -1, other); !errors.Is(err, storage.ErrNotStored) {
		t.Errorf("%v", err)
	}
	if got := <-via; !slices.Equal(got, append(other, own)) {
		t.Errorf("the other's way is %q", got)
	}
	close(answering)
	<-done
	m.wantStored(item)
	if len(from.asked()) != 2 {
		t.Errorf("requests %q", from.asked())
	}
}

// TestMeanwhile: if the item changes while its nar is downloaded, the nar is not stored,
// but the client gets it.
func TestMeanwhile(t *testing.T) {
	t.Parallel()
	item := spec{n: 1, size: 200_000}.make(t)
	content := item.files[item.names[0]]
	for name, test := range map[string]struct {
		change func(tx *index.Tx, m *mirror) error
		stored bool
	}{
		"removed": {func(tx *index.Tx, m *mirror) error { return tx.Remove(item.hash(), time.Now()) }, false},
		"withdrawn": {func(tx *index.Tx, m *mirror) error {
			_, err := tx.Withdraw(item.hash(), time.Now())
			return err
		}, false},
		"replaced": {func(tx *index.Tx, m *mirror) error {
			return m.put(tx, spec{n: 1, size: 200_001}.make(t).text)
		}, false},
		"compressed again": {func(tx *index.Tx, m *mirror) error {
			return m.put(tx, strings.Replace(item.text, fmt.Sprint("FileSize: ", len(content)), fmt.Sprint("FileSize: ", len(content)+1), 1))
		}, false},
		"signed again": {func(tx *index.Tx, m *mirror) error { return m.put(tx, item.text+"Note: again\n") }, true},
		"with more files": {func(tx *index.Tx, m *mirror) error {
			at := strings.Index(item.text, "URL")
			return m.put(tx, item.text[:at]+"URL: nar/lzip/"+item.base()+"\nCompression: lzip\nFileSize: 5\n"+item.text[at:])
		}, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			from := newSource(t, item)
			g := newGate(content, len(content)/2)
			from.first(item.names[0], g.answer)
			m := newMirror(t, item)
			f := m.patient(from, Options{})
			body, _, err := f.OpenFile(t.Context(), m.item(item), 0, 0, -1, nil)
			if err != nil {
				t.Fatal(err)
			}
			defer body.Close()
			if err := m.index.Update(t.Context(), func(tx *index.Tx) error { return test.change(tx, m) }); err != nil {
				t.Fatal(err)
			}
			close(g.open)
			if got, err := io.ReadAll(body); err != nil || !bytes.Equal(got, content) {
				t.Errorf("%d bytes, %v", len(got), err)
			}
			until(t, "nothing is in download", func() bool { return f.Status().InFlight == 0 })
			m.wantConsistent()
			now, err := m.Item(t.Context(), item.hash())
			if err != nil && name != "removed" {
				t.Fatal(err)
			}
			if err == nil && (now.Stored != 0) != test.stored {
				t.Errorf("stored files: %b", now.Stored)
			}
			if err == nil && test.stored && !now.HasStored(now.FileNamed(item.names[0])) {
				t.Errorf("stored files: %b", now.Stored)
			}
		})
	}
}

// put replaces an item's narinfo, in a transaction.
func (m *mirror) put(tx *index.Tx, text string) error {
	n, err := narinfo.Parse([]byte(text))
	if err != nil {
		return err
	}
	old, err := tx.Item(n.StorePath.Hash)
	if err != nil {
		return err
	}
	entry := m.index.Prepare(n)
	entry.AddedAt = time.Now()
	return tx.Put(entry, old)
}

// TestFull: without room for a nar, the client still gets it, and it is stored once there
// is room.
func TestFull(t *testing.T) {
	t.Parallel()
	item := spec{n: 1, size: 500_000, kinds: []string{"none"}}.make(t)
	content := item.files[item.names[0]]
	from := newSource(t, item)
	dir := testfs.Small(t, 1<<20)
	m := newMirrorIn(t, dir, item)
	write(t, dir+"/ballast", make([]byte, 500_000))
	free := testfs.Fill(t, dir)
	// There is a little room, as on a disk that fills up gradually.
	m.leave(dir+"/ballast", 300_000)
	f := m.patient(from, Options{All: true})
	read(t, f, m.item(item), content)
	if got := failures(t, f, "full"); got != 1 || len(m.spooled()) != 0 {
		t.Errorf("%d failures, spool %v", got, m.spooled())
	}
	run(t, f)
	until(t, "it is tried again", func() bool { return failures(t, f, "full") > 1 })
	if warnings := f.Warnings(); len(warnings) == 0 && f.Status().Paused {
		t.Error("no warning")
	}
	free()
	m.wantStored(item)
	if told := strings.Count(m.log.String(), "is full: fetching no nars"); told == 0 || strings.Count(m.log.String(), "level=WARN msg=\"the disk or storage is full: fetching no nars for now") != 1 {
		t.Errorf("the log tells it %d times", told)
	}
}

// leave truncates a file.
func (m *mirror) leave(name string, size int) {
	m.t.Helper()
	write(m.t, name, make([]byte, size))
}
