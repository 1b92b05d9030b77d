// Package lookup finds items that the index lacks at the upstreams, each once, and stores them.
//
// It also asks again about items of upstreams when their answers have expired. A narinfo is answered
// as soon as it has arrived. It is in memory until [Finder.Run] has written it.
package lookup

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"

	"nar-herder/internal/logonce"
	"nar-herder/internal/notify"
	"nar-herder/narinfo"
	"nar-herder/peer"
	"nar-herder/storage"
	"nar-herder/storage/index"
	"nar-herder/upstream"
)

// ErrBusy reports a question that would exceed the limits: of the client, or of all together.
var ErrBusy = errors.New("too many unknown items were requested")

const (
	// RetryAfter is when a client should repeat a question that was refused.
	RetryAfter = time.Second
	// DownTTL is how long clients may cache answers while no upstream can tell.
	DownTTL = time.Minute

	// unsaidTTL is for narinfos of upstreams that name no time. Clients would keep them for
	// [narinfo.UnadvertisedTTL].
	unsaidTTL = 24 * time.Hour
	// LongestTTL bounds the times that upstreams name.
	LongestTTL = 365 * 24 * time.Hour
	// negativeTTL is how long an item is unknown if nobody names a time.
	negativeTTL = time.Minute
	// keptTTL is the time until the next question about an item that its upstream has removed,
	// and that is kept because its nar is stored.
	keptTTL = time.Hour
	// downPause is how long it is remembered that no upstream could tell.
	downPause = time.Second
	// burstTime is how long any answer is remembered, even if the upstream forbids that: an
	// item that is asked for early is requested within the same burst.
	burstTime = 5 * time.Second

	// askAtOnce is how many items are asked for in one call.
	askAtOnce = 250
	// longestPoll is the longest interval of calls of [Asker.Next].
	longestPoll = 16 * time.Millisecond
)

// Source are the upstreams. [upstream.Set] implements it.
type Source interface {
	Ask(ctx context.Context, hashes []narinfo.PathHash, via []string, deliver func(narinfo.PathHash, upstream.Answer))
}

// Options of [New]. The zero value is valid.
type Options struct {
	// NegativeTTL bounds how long an unknown item is not asked for again; nil for no bound
	// other than that of the upstreams.
	NegativeTTL *time.Duration
	// DownIsNotFound answers [storage.ErrNotFound] instead of [upstream.ErrUnknown].
	DownIsNotFound bool
	// Log may be nil.
	Log *slog.Logger
}

// Finder finds items. Use [New] to make one.
type Finder struct {
	storage *storage.Storage
	source  Source
	options Options
	log     *slog.Logger
	repeats logonce.Filter
	limits  *limits
	metrics *metrics

	// ctx is that of all questions. It ends with Close.
	ctx context.Context
	end context.CancelFunc

	mu notify.Mutex
	// questions are in flight. answers are those that are not written, until they expire.
	questions map[question]*asked
	answers   *simplelru.LRU[question, *asked]
	// found has what is to be written, order the order of that, and failing is whether the
	// last attempt failed.
	found   map[narinfo.PathHash]*finding
	order   []narinfo.PathHash
	failing bool
	closed  bool
	// wake notifies Run that there is something to write, and hurry that somebody waits for it.
	wake, hurry chan struct{}
	// writing has a value while findings are written.
	writing chan struct{}
}

// question is one about an item. via are the instances that have forwarded it, as these are not
// asked: instances that ask each other must not wait for each other.
type question struct {
	hash narinfo.PathHash
	via  string
}

// asked is a question and its answer.
type asked struct {
	done   chan struct{} // closed with the answer
	answer Answer
	err    error
	// expires is when the question is asked again.
	expires time.Time
	// isNew is set when the index is known to lack the item.
	isNew bool
}

// Answer is the narinfo of an item.
type Answer struct {
	// Text is the narinfo byte for byte. It must not be modified.
	Text []byte
	// Until is when the answer expires, also that of a [storage.ErrNotFound]. It is zero for an
	// item that is not of an upstream.
	Until time.Time
}

// Asker is the client that asks for an item.
type Asker struct {
	// Client is the network that a question counts for; not valid if unknown.
	Client netip.Prefix
	// Via is the header Via of its request.
	Via []string
	// Next returns items that the client has requested meanwhile, which are then asked for too.
	// Nil for none.
	Next func() []narinfo.PathHash
}

// via returns the part of a question that depends on the instances before this one.
func (a *Asker) via() (via string) {
	if peer.HasPassed(a.Via) {
		for _, line := range a.Via {
			via += line + "\n"
		}
	}
	return via
}

// New makes a finder of items for the storage. The caller runs [Finder.Run], and closes it.
func New(s *storage.Storage, source Source, options Options) *Finder {
	f := &Finder{
		storage: s, source: source, options: options, log: options.Log,
		limits:    newLimits(),
		questions: make(map[question]*asked), found: make(map[narinfo.PathHash]*finding),
		wake: make(chan struct{}, 1), hurry: make(chan struct{}, 1), writing: make(chan struct{}, 1),
	}
	f.answers, _ = simplelru.NewLRU[question, *asked](f.limits.remembered, nil) // fails only for a size below one
	if f.log == nil {
		f.log = slog.New(slog.DiscardHandler)
	}
	f.ctx, f.end = context.WithCancel(context.Background())
	f.metrics = newMetrics(f)
	return f
}

// LookUp returns the narinfo of an item that the index lacks, or that has an expired answer. The
// error is [storage.ErrNotFound] if certainly no upstream has it; then the answer of the index
// must not be used either. It is [ErrBusy] or [upstream.ErrUnknown] if that can't be told.
func (f *Finder) LookUp(ctx context.Context, hash narinfo.PathHash, asker Asker) (Answer, error) {
	via := asker.via()
	f.mu.Lock()
	a, isNew := f.begin(question{hash, via}, f.limits.asking)
	f.mu.Unlock()
	switch {
	case a == nil:
		f.metrics.count(ErrBusy)
		return Answer{}, ErrBusy
	case isNew:
		batch := []narinfo.PathHash{hash}
		if asker.Next != nil {
			batch = f.beginAll(batch, asker.Next(), via)
		}
		go f.ask(batch, via, asker)
	}
	select {
	case <-a.done:
		return a.answer, a.err
	default:
	}
	var timer <-chan time.Time
	for wait := time.Millisecond; ; wait = min(2*wait, longestPoll) {
		if asker.Next != nil {
			timer = time.After(wait)
		}
		select {
		case <-a.done:
			return a.answer, a.err
		case <-ctx.Done():
			return Answer{}, ctx.Err()
		case <-timer:
			if batch := f.beginAll(nil, asker.Next(), via); len(batch) > 0 {
				go f.ask(batch, via, asker)
				wait = time.Millisecond / 2
			}
		}
	}
}

// IsPending reports whether an item that the index lacks is asked for, or is found and not yet
// written, so that LookUp needs no look at the index before.
func (f *Finder) IsPending(hash narinfo.PathHash) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if found := f.found[hash]; found != nil {
		return found.asked.isNew
	}
	a := f.questions[question{hash, ""}]
	return a != nil && a.isNew
}

// Add is [Finder.LookUp] for an item that the index lacks. It waits until the index has it, as
// nars are stored for items of the index only.
func (f *Finder) Add(ctx context.Context, hash narinfo.PathHash, asker Asker) (Answer, error) {
	answer, err := f.LookUp(ctx, hash, asker)
	if err != nil {
		return answer, err
	}
	select {
	case f.hurry <- struct{}{}:
	default:
	}
	ctx, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	if err := f.mu.Wait(ctx, func() bool { return f.found[hash] == nil }); err != nil {
		return Answer{}, fmt.Errorf("%w: write an item of an upstream to the database: %w", ErrBusy, err)
	}
	return answer, nil
}

// beginAll begins the questions about those of the hashes that are not answered and not in
// flight, and appends these to the batch.
func (f *Finder) beginAll(batch, hashes []narinfo.PathHash, via string) []narinfo.PathHash {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, hash := range hashes {
		if _, isNew := f.begin(question{hash, via}, f.limits.asking/2); isNew {
			batch = append(batch, hash)
		}
	}
	return batch
}

// begin returns the question and its answer, or nil if most questions are in flight. If it is
// new, the caller calls ask for it. The mutex is held.
func (f *Finder) begin(q question, most int) (a *asked, isNew bool) {
	if found := f.found[q.hash]; found != nil {
		return found.asked, false
	}
	if a, ok := f.answers.Get(q); ok {
		if f.storage.Now().Before(a.expires) {
			return a, false
		}
		f.answers.Remove(q)
	}
	if a := f.questions[q]; a != nil {
		return a, false
	}
	if len(f.questions) >= most || f.closed {
		return nil, false
	}
	a = &asked{done: make(chan struct{})}
	f.questions[q] = a
	return a, true
}

// ask answers questions that have begun. It asks for the first ones while it looks for the next
// in the index.
func (f *Finder) ask(hashes []narinfo.PathHash, via string, asker Asker) {
	for part := range slices.Chunk(hashes, askAtOnce) {
		f.askPart(part, via, asker)
	}
}

func (f *Finder) askPart(hashes []narinfo.PathHash, via string, asker Asker) {
	rows, unknown := f.known(hashes, via)
	granted := f.limits.take(asker.Client, len(unknown), time.Now())
	for _, hash := range unknown[granted:] {
		f.resolve(question{hash, via}, Answer{}, ErrBusy, time.Time{})
	}
	if unknown = unknown[:granted]; len(unknown) == 0 {
		return
	}
	f.waitForWriter()
	go func() {
		f.source.Ask(upstream.WithClient(f.ctx, asker.Client), unknown, asker.Via, func(hash narinfo.PathHash, answer upstream.Answer) {
			f.deliver(question{hash, via}, answer, rows[hash])
		})
		for _, hash := range unknown { // none is left, unless the source is faulty
			f.resolve(question{hash, via}, Answer{}, upstream.ErrUnknown, time.Time{})
		}
	}()
}

// known answers the questions that the index can answer. It returns the others, and the rows
// whose answers have expired.
func (f *Finder) known(hashes []narinfo.PathHash, via string) (rows map[narinfo.PathHash]*index.Item, unknown []narinfo.PathHash) {
	rows, now := make(map[narinfo.PathHash]*index.Item), f.storage.Now()
	unknown = make([]narinfo.PathHash, 0, len(hashes))
	done := 0
	err := f.storage.Index().EachAt(f.ctx, hashes, func(n int, row *index.Item, err error) error {
		done = n + 1
		q := question{hashes[n], via}
		switch {
		case err != nil:
			f.resolve(q, Answer{}, err, time.Time{})
		case row == nil:
			unknown = append(unknown, q.hash)
		case !row.WithdrawnAt.IsZero():
			// It was removed here. Clients may find it again when its row is deleted.
			f.resolve(q, Answer{}, storage.ErrNotFound, time.Time{})
		case row.Origin == 0:
			f.resolve(q, Answer{Text: row.Announced()}, nil, time.Time{})
		case now.Before(row.FreshUntil):
			f.resolve(q, Answer{Text: row.Announced(), Until: row.FreshUntil}, nil, time.Time{})
		default:
			rows[q.hash] = row
			unknown = append(unknown, q.hash)
		}
		return nil
	})
	if err != nil {
		for _, hash := range hashes[done:] {
			f.resolve(question{hash, via}, Answer{}, err, time.Time{})
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, hash := range unknown {
		if a := f.questions[question{hash, via}]; a != nil && rows[hash] == nil {
			a.isNew = true
		}
	}
	return rows, unknown
}

// deliver answers a question with the answer of the upstreams. row is that of the index, or nil.
func (f *Finder) deliver(q question, from upstream.Answer, row *index.Item) {
	now := f.storage.Now()
	switch {
	case from.Err == nil:
		found := &finding{narinfo: from.Narinfo, origin: from.Upstream.String(), until: now.Add(lifetime(from.MaxAge, unsaidTTL))}
		text := from.Narinfo.Text
		if found.isNew = row == nil || !bytes.Equal(row.Text, text); !found.isNew {
			text = row.Announced() // without the files that were dropped here
		}
		f.keep(q, found, Answer{text, found.until})
	case errors.Is(from.Err, storage.ErrNotFound) && row != nil && row.Stored != 0:
		until := now.Add(keptTTL)
		f.keep(q, &finding{until: until}, Answer{row.Announced(), until})
	case errors.Is(from.Err, storage.ErrNotFound):
		ttl := max(0, from.MaxAge)
		switch longest := f.options.NegativeTTL; {
		case longest != nil && (from.MaxAge < 0 || ttl > *longest):
			ttl = *longest
		case from.MaxAge < 0:
			ttl = negativeTTL
		}
		until := now.Add(min(ttl, LongestTTL))
		f.resolve(q, Answer{Until: until}, from.Err, later(until, now.Add(burstTime)))
	case f.options.DownIsNotFound && row == nil:
		f.resolve(q, Answer{Until: now.Add(DownTTL)}, storage.ErrNotFound, now.Add(downPause))
	default:
		f.resolve(q, Answer{}, from.Err, now.Add(downPause))
	}
}

// lifetime returns the time for which a narinfo need not be asked for again.
func lifetime(maxAge, unsaid time.Duration) time.Duration {
	if maxAge < 0 {
		maxAge = unsaid
	}
	return min(max(maxAge, burstTime), LongestTTL)
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// resolve answers a question that is in flight. The answer is remembered until it expires, if
// that is not zero.
func (f *Finder) resolve(q question, answer Answer, err error, expires time.Time) {
	f.mu.Set(func() {
		if a := f.settle(q, answer, err); a != nil && !expires.IsZero() {
			a.expires = expires
			f.answers.Add(q, a)
		}
	})
}

// keep answers a question, and keeps the finding until it is written.
func (f *Finder) keep(q question, found *finding, answer Answer) {
	f.mu.Set(func() {
		found.asked = f.settle(q, answer, nil)
		if found.asked == nil || len(f.found) >= f.limits.unwritten {
			return // or the writer can't keep up: it is asked for again
		}
		if f.found[q.hash] == nil {
			f.order = append(f.order, q.hash)
		}
		f.found[q.hash] = found
		select {
		case f.wake <- struct{}{}:
		default:
		}
	})
}

// settle answers a question that is in flight, and returns it. The mutex is held.
func (f *Finder) settle(q question, answer Answer, err error) *asked {
	a := f.questions[q]
	if a == nil {
		return nil
	}
	delete(f.questions, q)
	a.answer, a.err = answer, err
	f.metrics.count(err) // before anybody can see the answer
	close(a.done)
	return a
}
