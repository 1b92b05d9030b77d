// Package peer asks another Nar Herder, of this program or the original: which
// nars it has stored, and for their bytes.
//
// What a peer says is believed only where it is sure: an answer that is late,
// cut, of another form, or about another nar counts as none.
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
	"nar-herder/storage"
	"nar-herder/storage/bytestore"
)

const (
	// StoredPath begins the path of a question which nars are stored; hashes
	// follow, with commas between them.
	StoredPath = "/stored-nars/"
	// MostAsked bounds the hashes of one question. With them, the head of a
	// request stays below the 8 KiB that web servers take.
	MostAsked = 200
	// NonceKey is the query parameter whose value the answer repeats, so that
	// no answer out of somebody's cache passes for one.
	NonceKey = "nonce"
	// InstanceHeader and StorageHeader are in the answers of this program to
	// the original's question, with what [StoredReply] has as Instance and
	// Storage.
	InstanceHeader = "Nar-Herder-Instance"
	StorageHeader  = "Nar-Herder-Storage"
)

// StoredReply answers which nars are stored.
type StoredReply struct {
	// Instance is the random name of the instance that answers, and Storage
	// that of its storage, which several instances may share; "" where it has
	// none or can't tell.
	Instance string `json:"instance"`
	Storage  string `json:"storage"`
	// StorageUnknown says that it has one, and can't tell which.
	StorageUnknown bool   `json:"storage_unknown,omitempty"`
	Nonce          string `json:"nonce"`
	// ReliesOn says on which instances this one relies; nil where it can't tell.
	ReliesOn Statement `json:"relies_on,omitzero"`
	// Nars are in the order of the question.
	Nars []StoredNar `json:"nars"`
}

// StoredNar is the answer for one item.
type StoredNar struct {
	Hash string `json:"hash"`
	// Stored says that the files are in the storage now.
	Stored bool `json:"stored"`
	// Fault says that the instance can't tell.
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
	// ErrSelf says that the URL leads back to the instance that asks.
	ErrSelf = errors.New("it is this very instance, whose nars can't vouch for themselves: name another instance, " +
		"or, if its database was copied from this one's, stop the server with the copy and run 'nar-herder new-identity'")
	// ErrSharedStorage says that the peer's storage is the asker's own.
	ErrSharedStorage = errors.New("it has this very storage, so that its nars are the ones here: name an instance with a storage of its own, " +
		"or, if its storage is a copy of this one, delete the file " + bytestore.IdentityName + " in the copy and restart its server")
	// ErrNoStorageName says that the peer's storage may be the asker's own.
	ErrNoStorageName = errors.New("it can't tell which storage it has, which may be this one: let its server write to its storage once, " +
		"or put a file " + bytestore.IdentityName + " with a random word into it")
	// ErrAnswer says that the response is not an answer to the question.
	ErrAnswer = errors.New("not an answer of a Nar Herder")
)

// Self is who asks.
type Self struct {
	// Instance is the random name of the asking instance.
	Instance string
	// Storage returns the random name of its storage; nil, or "", without one.
	Storage func(ctx context.Context) (string, error)
	// AnswerTimeout and ProgressTimeout are how long it waits; 0 for the usual.
	AnswerTimeout, ProgressTimeout time.Duration
	// AllowPrivateRedirects makes it follow redirects to any server, not only to the
	// peer's own and to public addresses over https.
	AllowPrivateRedirects bool
	// Now is its clock; nil is the system's.
	Now func() time.Time
	// Room looks at the disk that is downloaded to; nil has the system do so.
	Room disk.Look
}

// Peer is another instance. Its methods may be called from several goroutines at
// once.
type Peer struct {
	// base is the URL, and name the same without user and password, for logs, errors
	// and everything else that people read.
	base    string
	name    string
	self    Self
	servers *servers
	client  *http.Client
	now     func() time.Time

	mu sync.Mutex
	// questions and nars have nothing to do with each other: clients who ask for
	// a nar that can't be read there must not keep it from being asked, and nars
	// that come say nothing about its answers.
	questions, nars record
	plain           time.Time // it only knows the original's question, as of then
}

// record is how requests of one kind have gone.
type record struct {
	failures int // since the last success
	failedAt time.Time
	slow     bool // it took long to fail
	until    time.Time
}

// backoff is how long a peer is left alone after failures.
var backoff = pace.Backoff{First: time.Second, Last: 5 * time.Minute}

const (
	// answerTimeout is how long an answer to a question may take, and the head
	// of one that carries a nar: the instance has disks to wait for.
	answerTimeout = 15 * time.Second
	// progressTimeout is how long a nar may stop to come.
	progressTimeout = 60 * time.Second
	// restAfter is how long no client has to wait for a peer that has failed.
	restAfter = 10 * time.Second
	// plainFor is how long a peer that did not know our question is not asked
	// it again.
	plainFor = 10 * time.Minute
	// plainAtOnce is how many of the original's questions are under way at a
	// time.
	plainAtOnce = 4
	// mostSkew is how far behind ours the peer's clock may be.
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
	p.servers = newServers(base, &http.Transport{
		Proxy:                 redact.Proxy,
		DialContext:           dialer.DialContext,
		TLSHandshakeTimeout:   self.AnswerTimeout,
		ResponseHeaderTimeout: self.AnswerTimeout,
		MaxIdleConnsPerHost:   2 * plainAtOnce,
		IdleConnTimeout:       time.Minute,
		// What is in them is kept, such as entity tags.
		MaxResponseHeaderBytes: maxHead,
		// Bytes are to come as they lie there.
		DisableCompression: true,
	}, dialer, self.AllowPrivateRedirects)
	p.client = &http.Client{Transport: p.servers, CheckRedirect: p.checkRedirect}
	return p
}

// Is says whether the peer is the one at that URL.
func (p *Peer) Is(base *url.URL) bool { return p.name == Name(base) }

// String is the peer's URL, for people: without user and password.
func (p *Peer) String() string { return p.name }

// isPrivate says whether the peer's URL has a user or password, so that clients can't
// be sent there.
func (p *Peer) isPrivate() bool { return p.base != p.name }

// newRequest makes a request for a path of the peer.
func (p *Peer) newRequest(ctx context.Context, method, path string) (*http.Request, error) {
	request, err := http.NewRequestWithContext(ctx, method, p.base+path, nil)
	if err != nil {
		return nil, explain(err)
	}
	return request, nil
}

// noRedirects marks the context of requests that only this server may answer.
type noRedirects struct{}

// Pause returns for how long the peer is not to be asked what it has stored,
// after questions that failed.
func (p *Peer) Pause() time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	return max(0, p.questions.until.Sub(p.now()))
}

// isResting says whether the peer has failed so lately, and so slowly, that a
// client should not wait for a nar, and for it to fail again. One that refuses
// connections costs nothing, and may just be starting again.
func (p *Peer) isResting() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.nars.failures > 0 && p.nars.slow && p.now().Sub(p.nars.failedAt) < restAfter
}

// settle notes in one of the peer's records how a request went that was begun at
// the given time. A failure of the asker is none of the peer, and that a nar is
// not there is an answer.
func (p *Peer) settle(ctx context.Context, r *record, begun time.Time, err error) {
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

// Verdict is what a peer's answer comes to for one item.
type Verdict struct {
	// Stored says that the peer surely has, now, each file of the item that is
	// stored here, of the same nar.
	Stored bool
	// Reason says why not.
	Reason string
}

// Stored asks for items, [MostAsked] at most, and returns a verdict for each, with what
// the peer says about itself in the same answer. The error says that nothing is known
// about any of them.
func (p *Peer) Stored(ctx context.Context, items []*storage.Item) (verdicts []Verdict, who Introduction, err error) {
	if len(items) > MostAsked {
		return nil, who, fmt.Errorf("%d items in one question, %d are allowed", len(items), MostAsked)
	}
	var storageName string
	if p.self.Storage != nil {
		if storageName, err = p.self.Storage(ctx); err != nil {
			return nil, who, err // which says nothing about the peer
		}
	}
	outer, begun := ctx, p.now()
	defer func() {
		p.settle(outer, &p.questions, begun, err)
		if err != nil {
			err = fmt.Errorf("ask %s which nars it has stored: %w", p, err)
		}
	}()
	ctx, cancel := context.WithTimeout(context.WithValue(ctx, noRedirects{}, true), 2*p.self.AnswerTimeout)
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

// Introduce returns what the peer says about itself.
func (p *Peer) Introduce(ctx context.Context) (who Introduction, err error) {
	ctx, cancel := context.WithTimeout(context.WithValue(ctx, noRedirects{}, true), p.self.AnswerTimeout)
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

// errNotKnown says that a peer does not know what was asked for.
var errNotKnown = errors.New("it answers 404")

// mostAnswer bounds the answer to a question.
const mostAnswer = 2 << 20

// ask asks our question.
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

// judgeReply reads the answer to our question.
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
			return nil, who, fmt.Errorf("%w: it is about %q where %s was asked for", ErrAnswer, nar.Hash, hash)
		}
		verdicts[i] = judge(items[i], nar, false)
	}
	return verdicts, Introduction{reply.Instance, reply.ReliesOn}, nil
}

// isOther makes sure that the peer's nars are others than the ones here.
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

// judge compares what a peer has with what is here. unsized says that its files
// may come without a size, as they do in narinfos.
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
	request, err := p.newRequest(ctx, http.MethodGet, path)
	if err != nil {
		return nil, nil, err
	}
	// What a proxy remembers is not what is there now.
	request.Header.Set("Cache-Control", "no-cache")
	response, err := p.client.Do(request)
	if err != nil {
		return nil, nil, explain(err)
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
