// Package peer is a client of another Nar Herder, this program or the original: of its nars
// and its changes.
//
// A late, cut or malformed answer, or one about another nar, counts as unknown.
package peer

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"nar-herder/internal/disk"
	"nar-herder/internal/pace"
	"nar-herder/internal/redact"
	"nar-herder/narinfo"
	"nar-herder/peer/redirect"
	"nar-herder/storage"
	"nar-herder/storage/bytestore"
)

// What instances publish for others to start from.
const (
	// DumpPath is the database in the original's schema.
	DumpPath = "/latest-database-dump"
	// IndexPath is a copy of the index of this program.
	IndexPath = "/latest-index-dump"
	// DigestHeader is the SHA-256 of the complete file, as in RFC 9530.
	DigestHeader = "Repr-Digest"
)

const (
	// StoredPath is the prefix of the path of a query which nars are stored. Hashes follow,
	// separated by commas.
	StoredPath = "/stored-nars/"
	// MostAsked bounds the hashes of one query, so that the header of the request stays
	// below the 8 KiB that web servers accept.
	MostAsked = 200
	// NonceKey is a query parameter. The answer repeats its value, so that a cached answer
	// is noticed.
	NonceKey = "nonce"
	// InstanceHeader and StorageHeader are in this program's answers to the original's
	// query, with the Instance and Storage of a [StoredReply].
	InstanceHeader = "Nar-Herder-Instance"
	StorageHeader  = "Nar-Herder-Storage"
)

// StoredReply says which nars are stored.
type StoredReply struct {
	// Instance is the random name of the instance that answers, and Storage that of its
	// storage, which several instances may share; "" for none or unknown.
	Instance string `json:"instance"`
	Storage  string `json:"storage"`
	// StorageUnknown says that it has a storage with an unknown name.
	StorageUnknown bool   `json:"storage_unknown,omitempty"`
	Nonce          string `json:"nonce"`
	// ReliesOn says on which instances this one depends; nil if unknown.
	ReliesOn Statement `json:"relies_on,omitzero"`
	// Nars are in the order of the query.
	Nars []StoredNar `json:"nars"`
}

// StoredNar is the answer for one item.
type StoredNar struct {
	Hash string `json:"hash"`
	// Stored says that the files are in the storage now.
	Stored bool `json:"stored"`
	// Fault says that this is unknown.
	Fault   bool         `json:"fault,omitempty"`
	NarHash string       `json:"nar_hash,omitempty"`
	Files   []StoredFile `json:"files,omitempty"`
}

// StoredFile is a file of a nar.
type StoredFile struct {
	URL  string `json:"url"`
	Size int64  `json:"size"`
}

var (
	// ErrSelf reports a URL that leads back to this instance.
	ErrSelf = errors.New("it is this very instance, whose nars can't vouch for themselves: name another instance, " +
		"or, if its database was copied from this one's, stop the server with the copy and run 'nar-herder new-identity'")
	// ErrSharedStorage reports a peer with this instance's own storage.
	ErrSharedStorage = errors.New("it has this very storage, so that its nars are the ones here: name an instance with a storage of its own, " +
		"or, if its storage is a copy of this one, delete the file " + bytestore.IdentityName + " in the copy and restart its server")
	// ErrNoStorageName reports a peer that may have this instance's own storage.
	ErrNoStorageName = errors.New("it can't tell which storage it has, which may be this one: let its server write to its storage once, " +
		"or put a file " + bytestore.IdentityName + " with a random word into it")
	// ErrAnswer reports a response that doesn't answer the request.
	ErrAnswer = errors.New("not an answer of a Nar Herder")
)

// Self describes this instance, and how it uses a peer.
type Self struct {
	// Instance is the random name of this instance.
	Instance string
	// Storage returns the random name of its storage; nil, or "", without one.
	Storage func(ctx context.Context) (string, error)
	// AnswerTimeout and ProgressTimeout are as the constants; 0 for these.
	AnswerTimeout, ProgressTimeout time.Duration
	// AllowPrivateRedirects makes it follow redirects to any server, not only to the
	// peer's own and to public addresses over https.
	AllowPrivateRedirects bool
	// Now is the clock; nil for the system's.
	Now func() time.Time
	// Room looks at the disk of downloads; nil for the system's.
	Room disk.Look
}

// Peer is another instance. Its methods may be called from several goroutines at
// once.
type Peer struct {
	// base is the URL, and name the same without user and password, for people.
	base    string
	name    string
	self    Self
	servers *redirect.Transport
	client  *http.Client
	now     func() time.Time

	mu sync.Mutex
	// queries and nars are separate: a nar that the peer can't read must not prevent
	// queries, and nars that come say nothing about queries.
	queries, nars record
	plain         time.Time // when it was found to know only the original's query
}

// Peers are other instances, in the order of preference for nars.
type Peers []*Peer

// record is the outcome of requests of one kind.
type record struct {
	failures int // since the last success
	failedAt time.Time
	slow     bool // it took long to fail
	until    time.Time
}

// backoff is how long a peer is left alone after failures.
var backoff = pace.Backoff{First: time.Second, Last: 5 * time.Minute}

const (
	// answerTimeout is how long an answer to a query, or the header of a nar, may take.
	// Disks can be slow.
	answerTimeout = 15 * time.Second
	// progressTimeout is how long a nar may stall.
	progressTimeout = 60 * time.Second
	// restAfter is how long no client has to wait for a peer that has failed.
	restAfter = 10 * time.Second
	// plainFor is how long a peer that did not know this program's query is sent the
	// original's.
	plainFor = 10 * time.Minute
	// plainAtOnce is how many of the original's queries run at a time.
	plainAtOnce = 4
	// mostSkew is how far the peer's clock may be behind ours.
	mostSkew = time.Minute
)

// New makes a peer at a URL, such as https://HOST or http://HOST:PORT/PATH.
func New(base *url.URL, self Self) *Peer {
	self.AnswerTimeout = cmp.Or(self.AnswerTimeout, answerTimeout)
	self.ProgressTimeout = cmp.Or(self.ProgressTimeout, progressTimeout)
	if self.Now == nil {
		self.Now = time.Now
	}
	dialer := net.Dialer{Timeout: self.AnswerTimeout}
	p := &Peer{base: trimmed(base), name: Name(base), self: self, now: self.Now}
	p.servers = redirect.NewTransport(base, &http.Transport{
		Proxy:                 redact.Proxy,
		DialContext:           dialer.DialContext,
		TLSHandshakeTimeout:   self.AnswerTimeout,
		ResponseHeaderTimeout: self.AnswerTimeout,
		MaxIdleConnsPerHost:   2 * plainAtOnce,
		IdleConnTimeout:       time.Minute,
		// Some headers, such as entity tags, are stored.
		MaxResponseHeaderBytes: maxHead,
		// Bytes must come as they are stored.
		DisableCompression: true,
	}, dialer, self.AllowPrivateRedirects)
	p.client = &http.Client{Transport: p.servers, CheckRedirect: p.servers.Check}
	return p
}

// Is reports whether the peer is the one at that URL.
func (p *Peer) Is(base *url.URL) bool { return p.name == Name(base) }

// String is the peer's URL, for people: without user and password.
func (p *Peer) String() string { return p.name }

// isPrivate reports whether the peer's URL has a user or password, so that clients can't be
// redirected there.
func (p *Peer) isPrivate() bool { return p.base != p.name }

// Self returns the options with their defaults.
func (p *Peer) Self() Self { return p.self }

// NewRequest makes a request for a path of the peer.
func (p *Peer) NewRequest(ctx context.Context, method, path string) (*http.Request, error) {
	request, err := http.NewRequestWithContext(ctx, method, p.base+path, nil)
	if err != nil {
		return nil, Explain(err)
	}
	return request, nil
}

// Do sends a request. Its errors don't repeat the URL, and have no password.
func (p *Peer) Do(request *http.Request) (*http.Response, error) {
	response, err := p.client.Do(request)
	if err != nil {
		return nil, Explain(err)
	}
	return response, nil
}

// Pause returns how long the peer is not to be queried, because queries have failed.
func (p *Peer) Pause() time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	return max(0, p.queries.until.Sub(p.now()))
}

// IsResting reports whether the peer has failed so recently and slowly that clients should not
// wait for it. One that refuses connections costs no time, and may just be restarting.
func (p *Peer) IsResting() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.nars.failures > 0 && p.nars.slow && p.now().Sub(p.nars.failedAt) < restAfter
}

// HasFailed reports whether the last nar that was requested failed, or was cut.
func (p *Peer) HasFailed() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.nars.failures > 0
}

// record records the outcome of a request that began at the given time. The end of the
// context is not a failure of the peer, and "not stored" is an answer.
func (p *Peer) record(ctx context.Context, r *record, begun time.Time, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err == nil || errors.Is(err, storage.ErrNotStored) {
		r.failures, r.until = 0, time.Time{}
		return
	}
	if ctx.Err() != nil {
		return
	}
	r.failures++
	r.failedAt = p.now()
	r.slow = r.failedAt.Sub(begun) > time.Second
	r.until = r.failedAt.Add(backoff.Jittered(r.failures))
}

// Verdict is the result of a peer's answer for one item.
type Verdict struct {
	// Stored says that the peer certainly has, now, each file of the item that is stored
	// here, of the same nar.
	Stored bool
	// Reason says why it isn't stored.
	Reason string
}

// Stored queries up to [MostAsked] items, and returns a verdict for each, and how the peer
// introduces itself in the same answer. After an error, nothing is known about any of them.
func (p *Peer) Stored(ctx context.Context, items []*storage.Item) (verdicts []Verdict, who Introduction, err error) {
	if len(items) > MostAsked {
		return nil, who, fmt.Errorf("%d items in one question, %d are allowed", len(items), MostAsked)
	}
	var storageName string
	if p.self.Storage != nil {
		if storageName, err = p.self.Storage(ctx); err != nil {
			return nil, who, err // not a failure of the peer
		}
	}
	outer, begun := ctx, p.now()
	defer func() {
		p.record(outer, &p.queries, begun, err)
		if err != nil {
			err = fmt.Errorf("ask %s which nars it has stored: %w", p, err)
		}
	}()
	ctx, cancel := context.WithTimeout(redirect.Never(ctx), 2*p.self.AnswerTimeout)
	defer cancel()
	p.mu.Lock()
	plain := p.now().Sub(p.plain) < plainFor
	p.mu.Unlock()
	if !plain {
		verdicts, who, err = p.ask(ctx, items, storageName)
		if !errors.Is(err, errNotKnown) {
			return verdicts, who, err
		}
		p.mu.Lock()
		p.plain = p.now()
		p.mu.Unlock()
	}
	return p.askPlainly(ctx, items, storageName)
}

// Introduce asks the peer to introduce itself.
func (p *Peer) Introduce(ctx context.Context) (who Introduction, err error) {
	ctx, cancel := context.WithTimeout(redirect.Never(ctx), p.self.AnswerTimeout)
	defer cancel()
	nonce := rand.Text()
	var nobody narinfo.PathHash
	body, _, err := p.get(ctx, StoredPath+nobody.String()+"?"+NonceKey+"="+nonce, mostAnswer)
	if errors.Is(err, errNotKnown) {
		return Introduction{}, nil
	}
	var reply StoredReply
	if err == nil {
		reply, err = readStored(body, 1)
	}
	if err == nil && (reply.Nonce != nonce || !isName(reply.Instance)) {
		err = fmt.Errorf("%w: it is not to this question", ErrAnswer)
	}
	if err != nil {
		return who, fmt.Errorf("ask %s which instance it is: %w", p, err)
	}
	return Introduction{reply.Instance, reply.ReliesOn}, nil
}

// errNotKnown reports that a peer doesn't know the path.
var errNotKnown = errors.New("it answers 404")

// mostAnswer bounds the answer to a query.
const mostAnswer = 2 << 20

// ask sends this program's query.
func (p *Peer) ask(ctx context.Context, items []*storage.Item, storageName string) ([]Verdict, Introduction, error) {
	hashes := make([]string, len(items))
	for i, item := range items {
		hashes[i] = item.Hash.String()
	}
	nonce := rand.Text()
	body, _, err := p.get(ctx, StoredPath+strings.Join(hashes, ",")+"?"+NonceKey+"="+nonce, mostAnswer)
	if err != nil {
		return nil, Introduction{}, err
	}
	return p.judgeReply(body, nonce, items, storageName)
}

// judgeReply reads the answer to this program's query.
func (p *Peer) judgeReply(body []byte, nonce string, items []*storage.Item, storageName string) (verdicts []Verdict, who Introduction, err error) {
	reply, err := readStored(body, len(items))
	if err != nil {
		return nil, who, err
	}
	if reply.Nonce != nonce || !isName(reply.Instance) || len(reply.Nars) != len(items) {
		return nil, who, fmt.Errorf("%w: it is not to this question", ErrAnswer)
	}
	if err := p.isOther(reply.Instance, reply.Storage, storageName); err != nil {
		return nil, who, err
	}
	verdicts = make([]Verdict, len(items))
	for i, nar := range reply.Nars {
		if hash := items[i].Hash.String(); nar.Hash != hash {
			return nil, who, fmt.Errorf("%w: it is about %q, not about %s", ErrAnswer, nar.Hash, hash)
		}
		verdicts[i] = judge(items[i], nar, false)
	}
	return verdicts, Introduction{reply.Instance, reply.ReliesOn}, nil
}

// isOther returns an error unless the peer's nars are certainly not those of this storage.
func (p *Peer) isOther(instance, storageName, ownStorage string) error {
	switch {
	case p.self.Instance != "" && instance == p.self.Instance:
		return ErrSelf
	case ownStorage != "" && storageName == ownStorage:
		return ErrSharedStorage
	case ownStorage != "" && storageName == "":
		return ErrNoStorageName
	}
	return nil
}

// judge compares a peer's nar with the one here. unsized says that its files may have no
// size, as in narinfos.
func judge(item *storage.Item, nar StoredNar, unsized bool) Verdict {
	switch {
	case nar.Fault:
		return Verdict{Reason: "it can't tell"}
	case !nar.Stored:
		return Verdict{Reason: "not stored there"}
	case nar.NarHash != item.Narinfo.NarHash.String():
		return Verdict{Reason: "another nar of the same name is stored there"}
	}
	sizes := make(map[string]int64, len(nar.Files))
	for _, file := range nar.Files {
		name, err := (&narinfo.File{URL: file.URL}).Path()
		if err != nil {
			continue
		}
		if size, twice := sizes[name]; twice && size != file.Size {
			return Verdict{Reason: "it gives a file two sizes"}
		}
		sizes[name] = file.Size
	}
	for n := range item.Narinfo.Files {
		if !item.HasStored(n) {
			continue
		}
		if size, ok := sizes[item.FileName(n)]; !ok || size != item.StoredSize(n) && !(unsized && size < 0) {
			return Verdict{Reason: "the nar is stored there in other files"}
		}
	}
	return Verdict{Stored: true}
}

// get fetches a small answer.
func (p *Peer) get(ctx context.Context, path string, most int64) ([]byte, http.Header, error) {
	request, err := p.NewRequest(ctx, http.MethodGet, path)
	if err != nil {
		return nil, nil, err
	}
	// A proxy's cache may be out of date.
	request.Header.Set("Cache-Control", "no-cache")
	response, err := p.Do(request)
	if err != nil {
		return nil, nil, err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(io.LimitReader(response.Body, most+1))
	switch {
	case err != nil:
		return nil, nil, err
	case response.StatusCode == http.StatusNotFound:
		return nil, nil, errNotKnown
	case response.StatusCode != http.StatusOK:
		return nil, nil, fmt.Errorf("it answers %s", response.Status)
	case int64(len(body)) > most:
		return nil, nil, fmt.Errorf("%w: it has over %d bytes", ErrAnswer, most)
	}
	return body, response.Header, nil
}
