package mirror

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"nar-herder/mirror/health"
	"nar-herder/peer"
)

// originalSource is a source like the original: it sends the changes since a time, as they
// were written.
type originalSource struct {
	*instance
	mu      sync.Mutex
	changes []peer.Change
	// answer replaces the next answers, if not "".
	answers []string
	// damage changes the first answer that it has an effect on, if not nil.
	damage func(string) string
	asked  []string
}

func newOriginal(t testing.TB) *originalSource {
	o := &originalSource{instance: newInstance(t)}
	o.through(func(w http.ResponseWriter, r *http.Request) bool {
		if r.URL.Path == peer.DumpPath {
			return false
		}
		since := r.URL.Query().Get(peer.SinceKey)
		if r.URL.Path != peer.ChangesPath || since == "" {
			http.NotFound(w, r)
			return true
		}
		o.mu.Lock()
		defer o.mu.Unlock()
		o.asked = append(o.asked, since)
		if len(o.answers) > 0 {
			answer := o.answers[0]
			o.answers = o.answers[1:]
			_, _ = w.Write([]byte(answer))
			return true
		}
		reply := struct {
			Changes []peer.Change `json:"recent_changes"`
		}{[]peer.Change{}}
		for _, c := range o.changes {
			if c.Datetime >= since {
				reply.Changes = append(reply.Changes, c)
			}
		}
		text, err := json.Marshal(reply)
		if err != nil {
			panic(err)
		}
		if o.damage != nil {
			if damaged := o.damage(string(text)); damaged != string(text) {
				text, o.damage = []byte(damaged), nil
			}
		}
		_, _ = w.Write(text)
		return true
	})
	return o
}

// added adds an item to the original, and a change.
func (o *originalSource) added(when time.Time, n, version int) {
	info := testInfo(n, version, n)
	o.add(when, info)
	o.mu.Lock()
	defer o.mu.Unlock()
	o.changes = append(o.changes, peer.Change{Datetime: when.Format(time.DateTime), Change: peer.Addition, Data: string(info.Text)})
}

func (o *originalSource) removed(when time.Time, n int) {
	o.remove(when, n)
	o.mu.Lock()
	defer o.mu.Unlock()
	o.changes = append(o.changes, peer.Change{Datetime: when.Format(time.DateTime), Change: peer.Removal, Data: testPath(n).String()})
}

func (o *originalSource) answer(texts ...string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.answers = append(o.answers, texts...)
}

// rounds waits for n more requests.
func (o *originalSource) rounds(n int) {
	o.t.Helper()
	count := func() int {
		o.mu.Lock()
		defer o.mu.Unlock()
		return len(o.asked)
	}
	before := count()
	until(o.t, "the next questions", func() bool { return count() >= before+n })
}

// TestPlain: an original is followed by time, and each change is applied exactly once.
func TestPlain(t *testing.T) {
	t.Parallel()
	o := newOriginal(t)
	for n := range 20 {
		o.added(at(n/4), n, 1)
	}
	o.dump(false)
	f := follow(t, newInstance(t), o.instance, nil)
	f.same(o.instance)
	o.added(at(100), 100, 1)
	o.added(at(100), 101, 1)
	f.same(o.instance)
	o.added(at(100), 102, 1) // of the same second, after the others were followed
	f.same(o.instance)
	o.removed(at(100), 102)
	f.same(o.instance)
	o.added(at(90), 103, 1) // written late, by another process
	f.same(o.instance)
	o.added(at(101), 5, 2)
	f.same(o.instance)
	o.rounds(3)
	f.stop()
	log := len(f.told())
	f = follow(t, f.instance, o.instance, nil)
	o.rounds(3)
	if again := f.told(); len(again) != log {
		t.Errorf("the changes were followed again: %d lines in the log, were %d", len(again), log)
	}
	until(t, "to be up to date", func() bool { s := f.Status(); return s.State == health.Following && s.LagSeconds < 5 })

	// The log loses changes that were followed, and some that were not.
	f.stop()
	o.added(at(300), 110, 1)
	o.removed(at(301), 3)
	o.dump(false)
	o.mu.Lock()
	o.changes = nil
	o.mu.Unlock()
	o.added(at(302), 111, 1)
	f = follow(t, f.instance, o.instance, nil)
	f.same(o.instance)
	if f.status.resyncs != 1 {
		t.Errorf("%d resyncs for one gap", f.status.resyncs)
	}
}

// TestPlainGarbage: malformed changes of an original are not applied, and the mirror
// resumes by itself afterwards.
func TestPlainGarbage(t *testing.T) {
	t.Parallel()
	o := newOriginal(t)
	for n := range 20 {
		o.added(at(n), n, 1)
	}
	o.dump(false)
	f := follow(t, newInstance(t), o.instance, nil)
	f.same(o.instance)
	before := f.list()
	o.rounds(1)
	addition := func(n int, damage func(string) string) string {
		text, err := json.Marshal(damage(string(testInfo(n, 1, n).Text)))
		if err != nil {
			t.Fatal(err)
		}
		o.mu.Lock()
		defer o.mu.Unlock()
		known, err := json.Marshal(o.changes)
		if err != nil {
			t.Fatal(err)
		}
		return fmt.Sprintf(`{"recent_changes":[%s,{"datetime":"2026-01-01 00:00:50","change":"addition","data":%s}]}`, known[1:len(known)-1], text)
	}
	for _, answer := range []string{
		"", "null", "{}", "[]", "<html>busy</html>", `{"recent_changes":{}}`, `{"recent_changes":[`, `{"recent_changes":[{"datetime":"soon"}]}`,
		`{"recent_changes":[],"recent_changes":[]}`,
		addition(50, func(text string) string { return text[:len(text)/2] }),
		addition(51, func(text string) string { return strings.Replace(text, "URL: nar/none/0", "URL: nar/none/1", 1) }),
		addition(52, func(string) string { return strings.Repeat("x", 1<<20) }),
		addition(53, func(text string) string { return strings.Replace(text, "NarSize: 1", "NarSize: 3", 1) }),
		addition(54, func(text string) string { return strings.Replace(text, "Signature", "Signaturf", 1) }),
	} {
		o.answer(answer)
		o.rounds(2)
		if got := f.list(); !slices.Equal(got, before) {
			t.Fatalf("after %.100q the mirror has\n%s", answer, strings.Join(got, "\n"))
		}
	}
	o.added(at(60), 60, 1)
	f.same(o.instance)
	// A change that stays malformed is skipped in the end.
	o.mu.Lock()
	o.changes = append(o.changes, peer.Change{Datetime: at(61).Format(time.DateTime), Change: peer.Addition, Data: "StorePath: nonsense\n"})
	o.mu.Unlock()
	o.added(at(62), 62, 1)
	f.same(o.instance)
	if f.Status().PassedOver != 1 {
		t.Errorf("%d changes were passed over, want 1", f.Status().PassedOver)
	}
}

// TestPlainDamaged: a change that was damaged in transit is not applied, even though it has
// no digest; the right one is.
func TestPlainDamaged(t *testing.T) {
	t.Parallel()
	replace := func(old, new string) func(string) string {
		return func(answer string) string {
			// Only the last, because the earlier ones are followed already.
			if i := strings.LastIndex(answer, old); i >= 0 {
				return answer[:i] + new + answer[i+len(old):]
			}
			return answer
		}
	}
	for name, test := range map[string]struct {
		change func(o *originalSource)
		damage func(string) string
	}{
		"length":      {func(o *originalSource) { o.added(at(50), 50, 1) }, replace("FileSize: 120", "FileSize: 130")},
		"compression": {func(o *originalSource) { o.added(at(50), 50, 1) }, replace("Compression: none", "Compression: nond")},
		// If it were applied, later changes would not be requested.
		"time": {func(o *originalSource) { o.added(at(50), 50, 1) }, replace("2026-01-01 00:00:50", "2026-01-01 10:00:50")},
		// If it were applied, another item would be removed.
		"removal": {func(o *originalSource) { o.removed(at(50), 3) }, replace(testPath(3).String(), testPath(7).String())},
		// This is the anchor.
		"anchor": {func(o *originalSource) {}, replace("2026-01-01 00:00:20", "2026-01-01 00:00:10")},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := newOriginal(t)
			for n := range 20 {
				o.added(at(n), n, 1)
			}
			o.dump(false)
			f := follow(t, newInstance(t), o.instance, nil)
			f.same(o.instance)
			o.added(at(20), 20, 1) // the log may lose changes that the dump has, but not this one
			f.same(o.instance)
			o.rounds(2)
			before := len(f.told())
			o.mu.Lock()
			o.damage = test.damage
			o.mu.Unlock()
			test.change(o)
			until(t, "the damage", func() bool {
				o.mu.Lock()
				defer o.mu.Unlock()
				return o.damage == nil
			})
			f.same(o.instance)
			o.rounds(3)
			o.added(at(51), 51, 1)
			f.same(o.instance)
			want := o.told()
			if got := f.told()[before:]; !slices.Equal(got, want[len(want)-len(got):]) || len(got) > 2 {
				t.Errorf("the mirror tells\n%s\nthe source\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
			}
			f.stop()
			if f.status.resyncs != 1 { // at the beginning
				t.Errorf("%d starts from the dump, status %+v", f.status.resyncs, f.Status())
			}
		})
	}
}

// TestPlainBackInTime: an original with a dump older than the followed changes is refused.
func TestPlainBackInTime(t *testing.T) {
	t.Parallel()
	o := newOriginal(t)
	o.added(at(1), 1, 1)
	o.dump(false)
	o.added(at(50), 2, 1)
	f := follow(t, newInstance(t), o.instance, nil)
	f.same(o.instance)
	o.mu.Lock()
	o.changes = o.changes[:1]
	o.mu.Unlock()
	if why := f.refused(); !strings.Contains(why, "gone back in time") {
		t.Errorf("it was refused because %s", why)
	}
	if got := f.list(); len(got) != 2 {
		t.Errorf("the mirror has %q", got)
	}
}
