package mirror

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"nar-herder/mirror/cursor"
	"nar-herder/mirror/health"
	"nar-herder/narinfo"
	"nar-herder/peer"
	"nar-herder/storage/index"
)

// TestFollow: a new mirror follows its source, and a mirror of the mirror gets the same
// items with the source's times.
func TestFollow(t *testing.T) {
	t.Parallel()
	source := newInstance(t)
	for n := range 300 {
		source.add(at(n), testInfo(n, 1, n))
	}
	source.remove(at(401), 7)
	source.dump(true)
	middle := follow(t, newInstance(t), source, nil)
	middle.same(source)
	until(t, "to be up to date", func() bool {
		s := middle.Status()
		return s.State == health.Following && s.Backlog == 0 && s.LagSeconds >= 0
	})

	middle.dump(true)
	last := follow(t, newInstance(t), middle.instance, nil)
	last.same(source)
	source.add(at(402), testInfo(2000, 1, 1), testInfo(2001, 1, 2))
	source.add(at(403), testInfo(5, 2, 5)) // with another signature, say
	source.add(at(404), testInfo(6, 2, 99))
	source.remove(at(405), 8, 9)
	source.add(at(406), testInfo(9, 1, 9)) // added again
	more := make([]*narinfo.Narinfo, batchSize+100)
	for n := range more {
		more[n] = testInfo(3000+n, 1, n)
	}
	source.add(at(407), more...)
	middle.same(source)
	last.same(source)
	news := source.told()[slices.IndexFunc(source.told(), func(line string) bool { return strings.HasPrefix(line, at(402).Format(time.DateTime)) }):]
	for _, i := range []*instance{middle.instance, last.instance} {
		log := i.told()
		if from := len(log) - len(news); from < 0 || !slices.Equal(log[from:], news) {
			t.Errorf("published changes\n%q\nwant\n%q", log[max(0, from):], news)
		}
	}
	// A restart resumes.
	middle.stop()
	before, err := middle.index.LastChange(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	source.add(at(5000), testInfo(5000, 1, 1))
	again := follow(t, middle.instance, source, nil)
	again.same(source)
	last.same(source)
	if after, err := middle.index.LastChange(t.Context()); err != nil || after != before+1 {
		t.Errorf("%d changes for one, %v", after-before, err)
	}
}

// TestGap: a mirror makes up for changes that have left the source's log by the dump, and
// keeps its own items.
func TestGap(t *testing.T) {
	t.Parallel()
	source, own := newInstance(t), newInstance(t)
	source.add(at(1), testInfo(1, 1, 1), testInfo(2, 1, 2), testInfo(3, 1, 3), testInfo(4, 1, 4))
	own.add(at(2), testInfo(50, 1, 50), testInfo(2, 1, 77), testInfo(3, 1, 3)) // before it was a mirror
	source.dump(true)
	pinned := testPath(4).Hash
	options := func(o *Options) {
		o.Pinned = func(context.Context) (func(narinfo.PathHash) bool, func(*index.Tx) error, error) {
			return func(hash narinfo.PathHash) bool { return hash == pinned }, func(*index.Tx) error { return nil }, nil
		}
	}
	f := follow(t, own, source, options)
	until(t, "the source's items", func() bool { return len(own.list()) == 5 })
	until(t, "the changes to be followed", func() bool { return f.Status().State == health.Following })
	f.stop()
	err := own.index.Update(t.Context(), func(tx *index.Tx) error {
		// Only stored nars can be kept.
		return errors.Join(tx.SetStored(pinned, 1, nil, time.Time{}), tx.AddTags(testPath(1).Hash, []index.Tag{{Key: "k", Value: "v"}}))
	})
	if err != nil {
		t.Fatal(err)
	}
	source.add(at(3), testInfo(5, 1, 5))
	source.add(at(4), testInfo(1, 2, 1))
	source.remove(at(5), 2, 3, 4)
	source.dump(true)
	last, err := source.index.LastChange(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	source.trim(last)
	source.add(at(6), testInfo(6, 1, 6))
	f = follow(t, own, source, options)
	want := slices.Sorted(slices.Values([]string{
		at(1).Format(time.DateTime) + " " + string(testInfo(1, 2, 1).Text),
		at(2).Format(time.DateTime) + " " + string(testInfo(2, 1, 77).Text), // another nar than the source's
		at(1).Format(time.DateTime) + " " + string(testInfo(4, 1, 4).Text),  // pinned
		at(3).Format(time.DateTime) + " " + string(testInfo(5, 1, 5).Text),
		at(6).Format(time.DateTime) + " " + string(testInfo(6, 1, 6).Text),
		at(2).Format(time.DateTime) + " " + string(testInfo(50, 1, 50).Text),
	}))
	until(t, "the gap to be closed", func() bool { return slices.Equal(own.list(), want) || f.Status().Failures > 3 })
	if got := own.list(); !slices.Equal(got, want) {
		t.Errorf("the mirror has\n%s\nwant\n%s\n%+v", strings.Join(got, "\n"), strings.Join(want, "\n"), f.Status())
	}
	if tags, err := own.index.Tags(t.Context(), testPath(1).Hash); err != nil || len(tags) != 1 {
		t.Errorf("tags %v, %v", tags, err)
	}
}

// refused waits until the source is refused, and returns the reason.
func (f *following) refused() string {
	f.t.Helper()
	defer func() {
		if f.t.Failed() {
			f.t.Logf("%+v\n%s", f.Status(), f.logged)
		}
	}()
	until(f.t, "the source to be refused", func() bool { return f.Status().State == health.Refusing })
	if len(f.Warnings()) == 0 {
		f.t.Error("the health does not warn")
	}
	return f.Status().Error
}

// TestRefused: a source that loses much, or has gone back in time, is not followed until it
// is accepted.
func TestRefused(t *testing.T) {
	t.Parallel()
	many := func(t *testing.T) (*instance, []int) {
		source := newInstance(t)
		infos := make([]*narinfo.Narinfo, 300)
		numbers := make([]int, len(infos))
		for n := range infos {
			infos[n], numbers[n] = testInfo(n, 1, n), n
		}
		source.add(at(1), infos...)
		source.dump(true)
		return source, numbers
	}
	t.Run("removals", func(t *testing.T) {
		t.Parallel()
		source, numbers := many(t)
		f := follow(t, newInstance(t), source, nil)
		f.same(source)
		source.remove(at(2), numbers[:90]...)
		f.same(source) // so many may be removed
		source.remove(at(3), numbers[90:180]...)
		if why := f.refused(); !strings.Contains(why, "within an hour") {
			t.Errorf("it was refused because %s", why)
		}
		if left := len(f.list()); left < 190 {
			t.Errorf("%d items are left", left)
		}
		accept(t, f)
		f.again(source)
	})
	t.Run("dump", func(t *testing.T) {
		t.Parallel()
		source, numbers := many(t)
		f := follow(t, newInstance(t), source, nil)
		f.same(source)
		f.stop()
		source.remove(at(3), numbers[10:]...)
		source.dump(true)
		source.trim(1 << 60)
		f = follow(t, f.instance, source, nil)
		if why := f.refused(); !strings.Contains(why, "shrunk from 300 items to 10") {
			t.Errorf("it was refused because %s", why)
		}
		if left := len(f.list()); left != 300 {
			t.Errorf("%d items are left", left)
		}
		accept(t, f)
		f.again(source)
	})
	t.Run("back in time", func(t *testing.T) {
		t.Parallel()
		source, _ := many(t)
		f := follow(t, newInstance(t), source, nil)
		f.same(source)
		f.stop()
		err := f.index.Update(t.Context(), func(tx *index.Tx) error {
			return cursor.Cursor{Instance: source.index.Instance(), Position: 1 << 20}.Write(tx)
		})
		if err != nil {
			t.Fatal(err)
		}
		f = follow(t, f.instance, source, nil)
		if why := f.refused(); !strings.Contains(why, "gone back in time") {
			t.Errorf("it was refused because %s", why)
		}
		source.add(at(9), testInfo(9000, 1, 1))
		source.dump(true)
		accept(t, f)
		f.again(source)
	})
	t.Run("itself", func(t *testing.T) {
		t.Parallel()
		source, _ := many(t)
		f := follow(t, source, source, nil)
		if why := f.refused(); !strings.Contains(why, "this very instance") {
			t.Errorf("it was refused because %s", why)
		}
	})
}

func accept(t *testing.T, f *following) {
	t.Helper()
	if err := Accept(t.Context(), f.index, time.Now()); err != nil {
		t.Fatal(err)
	}
}

// again makes a refusing mirror look at its source now.
func (f *following) again(source *instance) {
	f.t.Helper()
	f.stop()
	follow(f.t, f.instance, source, nil).same(source)
}

// TestOtherDatabase: a source with a new database is merged.
func TestOtherDatabase(t *testing.T) {
	t.Parallel()
	first, second := newInstance(t), newInstance(t)
	first.add(at(1), testInfo(1, 1, 1), testInfo(2, 1, 2))
	first.dump(true)
	f := follow(t, newInstance(t), first, nil)
	f.same(first)
	f.stop()
	second.add(at(2), testInfo(2, 1, 2), testInfo(3, 1, 3))
	second.dump(true)
	f = follow(t, f.instance, second, nil)
	until(t, "the other's items", func() bool { return len(f.list()) == 2 })
	second.add(at(3), testInfo(4, 1, 4))
	until(t, "its changes", func() bool { return len(f.list()) == 3 })
}

// TestDamagedStream: a change that was damaged in transit is not applied, and is sent
// again.
func TestDamagedStream(t *testing.T) {
	t.Parallel()
	source := newInstance(t)
	source.add(at(1), testInfo(1, 1, 1))
	source.dump(true)
	f := follow(t, newInstance(t), source, nil)
	f.same(source)
	for _, damage := range []func(text string) string{
		func(text string) string { return strings.Replace(text, "NarSize: 1", "NarSize: 3", 1) },
		func(text string) string { return strings.Replace(text, "addition", "removal", 1) },
		func(text string) string { return strings.Replace(text, `"position":`, `"position":9`, 1) },
		func(text string) string { return "<html>" + text },
		func(text string) string { return text[:len(text)/2] },
	} {
		f.stop()
		var damaged atomic.Int64
		source.through(func(w http.ResponseWriter, r *http.Request) bool {
			if r.URL.Path != peer.StreamPath || damaged.Add(1) > 2 {
				return false
			}
			behind, err := http.Get("http://" + source.address + r.URL.String())
			if err != nil {
				return false
			}
			defer behind.Body.Close()
			w.Header().Set("Content-Type", behind.Header.Get("Content-Type"))
			w.WriteHeader(behind.StatusCode)
			// All changes come in one piece.
			buffer := make([]byte, 1<<20)
			n, _ := behind.Body.Read(buffer)
			_, _ = w.Write([]byte(damage(string(buffer[:n]))))
			panic(http.ErrAbortHandler)
		})
		source.add(at(10+len(source.list())), testInfo(100+len(source.list()), 1, 1))
		f = follow(t, f.instance, source, nil)
		f.same(source)
		if damaged.Load() < 2 {
			t.Error("nothing was damaged")
		}
	}
}

// TestDamagedAmongOthers: if one of several changes, or its event, is damaged, none is lost.
func TestDamagedAmongOthers(t *testing.T) {
	t.Parallel()
	for name, damage := range map[string]func(text string) string{
		"a change": func(text string) string { return strings.Replace(text, "Version: 8", "Version: 9", 1) },
		"its event": func(text string) string {
			return strings.Replace(replaceAfter(text, "Version: 7", "event: change", "event: chance"), `"recent_changes"`, `"recent_chances"`, 1)
		},
		"its data":        func(text string) string { return replaceAfter(text, "Version: 7", "data: ", "date: ") },
		"all of it":       func(text string) string { return replaceAfter(text, "Version: 7", "\n\n", "\n") },
		"the end":         func(text string) string { return text[:max(0, strings.LastIndex(text, "event: "))] },
		"one in the page": func(text string) string { return strings.Replace(text, `"id":4`, `"id":5`, 1) },
	} {
		for _, path := range []string{peer.StreamPath, peer.ChangesPath} {
			if path == peer.ChangesPath && (name == "its data" || name == "all of it") {
				continue // without changes
			}
			t.Run(name+" at "+path, func(t *testing.T) {
				t.Parallel()
				source := newInstance(t)
				source.add(at(1), testInfo(1, 1, 1))
				source.dump(true)
				f := follow(t, newInstance(t), source, nil)
				f.same(source)
				f.stop()
				var asked, damaged atomic.Int64
				source.through(func(w http.ResponseWriter, r *http.Request) bool {
					if r.URL.Path == peer.StreamPath && path != peer.StreamPath {
						http.Error(w, "not now", http.StatusInternalServerError)
						return true
					}
					if r.URL.Path != path || asked.Add(1) > 3 {
						return false
					}
					behind, err := http.Get("http://" + source.address + r.URL.String())
					if err != nil {
						return false
					}
					defer behind.Body.Close()
					buffer := make([]byte, 1<<20)
					n, _ := behind.Body.Read(buffer)
					w.Header().Set("Content-Type", behind.Header.Get("Content-Type"))
					w.WriteHeader(behind.StatusCode)
					text := damage(string(buffer[:n]))
					if text != string(buffer[:n]) {
						damaged.Add(1)
					}
					_, _ = w.Write([]byte(text))
					if path == peer.StreamPath {
						panic(http.ErrAbortHandler)
					}
					return true
				})
				source.add(at(2), testInfo(2, 6, 2), testInfo(3, 7, 3), testInfo(4, 8, 4), testInfo(5, 1, 5), testInfo(6, 1, 6))
				f = follow(t, f.instance, source, func(o *Options) {})
				if path == peer.ChangesPath {
					f.stop()
					m := f.Mirror
					m.noStreamUntil = m.Now().Add(time.Hour)
					for range 8 {
						if _, err := m.step(t.Context()); err != nil {
							continue
						}
					}
				}
				f.same(source)
				if damaged.Load() == 0 {
					t.Error("nothing was damaged")
				}
			})
		}
	}
}

// replaceAfter replaces the first occurrence after a text.
func replaceAfter(text, after, old, with string) string {
	i := strings.Index(text, after)
	if i < 0 {
		return text
	}
	return text[:i] + strings.Replace(text[i:], old, with, 1)
}

// TestBackupRestored: a mirror notices that its source was restored to an earlier state,
// even if the source's log has grown to the same length since.
func TestBackupRestored(t *testing.T) {
	t.Parallel()
	source := newInstance(t)
	source.add(at(1), testInfo(1, 1, 1))
	source.dump(true)
	f := follow(t, newInstance(t), source, nil)
	source.add(at(2), testInfo(2, 1, 2), testInfo(3, 1, 3))
	f.same(source)
	until(t, "to be up to date", func() bool { return f.Status().Backlog == 0 && f.Status().State == health.Following })
	f.stop()
	// Only the last change of the log differs.
	err := source.index.Update(t.Context(), func(tx *index.Tx) error { return tx.Remove(testPath(3).Hash, at(3)) })
	if err != nil {
		t.Fatal(err)
	}
	source.rewrite("DELETE FROM recent_changes WHERE id >= 3", "UPDATE sqlite_sequence SET seq = 2 WHERE name = 'recent_changes'")
	source.add(at(4), testInfo(4, 1, 4), testInfo(5, 1, 5))
	f = follow(t, f.instance, source, nil)
	if why := f.refused(); !strings.Contains(why, "gone back in time") {
		t.Errorf("it was refused because %s", why)
	}
	source.dump(true)
	accept(t, f)
	f.again(source)
}

// TestCycle: changes don't circulate between two instances that mirror each other.
func TestCycle(t *testing.T) {
	t.Parallel()
	a, b := newInstance(t), newInstance(t)
	a.add(at(1), testInfo(1, 1, 1))
	b.add(at(1), testInfo(2, 1, 2))
	a.dump(true)
	b.dump(true)
	fa := follow(t, a, b, nil)
	a.tellsChain(fa.Mirror)
	until(t, "a to follow b", func() bool { return fa.Status().State == health.Following })
	fb := follow(t, b, a, nil)
	b.tellsChain(fb.Mirror)
	until(t, "one of them to be refused", func() bool { return fa.Status().State == health.Refusing || fb.Status().State == health.Refusing })
}

// blockingHandler blocks, once, the log line about a change that can't be followed.
type blockingHandler struct {
	slog.Handler
	reached, release chan struct{}
	ended            *atomic.Bool
}

func (h *blockingHandler) Handle(_ context.Context, r slog.Record) error {
	if strings.Contains(r.Message, "can't be followed") {
		close(h.reached)
		<-h.release
		h.ended.Store(true)
	}
	return nil
}

func (h *blockingHandler) Enabled(context.Context, slog.Level) bool { return true }

// TestStreamEndsWhole: followStream returns after the reader of the stream has ended,
// because both use the same fields.
func TestStreamEndsWhole(t *testing.T) {
	t.Parallel()
	source, own := newInstance(t), newInstance(t)
	source.add(at(1), testInfo(1, 1, 1), testInfo(2, 1, 2))
	source.dump(true)
	m := mirrorOf2(t, own, source, filepath.Join(t.TempDir(), "download"))
	if _, err := m.step(t.Context()); err != nil {
		t.Fatal(err)
	}
	from, err := cursor.Read(t.Context(), own.index)
	if err != nil {
		t.Fatal(err)
	}
	more := make([]*narinfo.Narinfo, batchSize)
	for n := range more {
		more[n] = testInfo(10+n, 1, n)
	}
	source.remove(at(2), 1)
	source.add(at(3), more...)
	source.remove(at(4), 2)
	source.rewrite("UPDATE recent_changes SET store_path = 'garbage' WHERE id = (SELECT max(id) FROM recent_changes)")
	handler := &blockingHandler{slog.DiscardHandler, make(chan struct{}), make(chan struct{}), new(atomic.Bool)}
	m.Log = slog.New(handler)
	fault := errors.New("the pins can't be read")
	m.Pinned = func(context.Context) (func(narinfo.PathHash) bool, func(*index.Tx) error, error) {
		<-handler.reached // the reader is busy
		time.AfterFunc(100*time.Millisecond, func() { close(handler.release) })
		return nil, nil, fault
	}
	if err := m.followStream(t.Context(), from); !errors.Is(err, fault) {
		t.Error(err)
	}
	if !handler.ended.Load() {
		t.Error("the reader continues")
	}
}
