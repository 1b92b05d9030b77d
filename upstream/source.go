package upstream

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"nar-herder/internal/logonce"
	"nar-herder/internal/pace"
	"nar-herder/internal/redact"
	"nar-herder/peer"
	"nar-herder/upstream/pipeline"
	"nar-herder/upstream/turns"
)

// Upstream is one substitute server.
type Upstream struct {
	base *url.URL
	name string
	// label is the name for everybody: the URL, or for a directory, as that is private, file:N
	// for the Nth upstream.
	label   string
	options *Options
	// authorization is the header of a user and password; "" for none.
	authorization string
	// An upstream has either.
	server *server
	files  *pool // of a directory
	// secure is what the server redirects to, if that is the same with https; nil if it
	// doesn't.
	secure atomic.Pointer[server]
	breaker
	counts
	logged logonce.Filter
}

func newUpstream(base *url.URL, number int, o *Options) *Upstream {
	u := &Upstream{base: base, name: peer.Name(base), label: peer.Name(base), options: o}
	u.breaker.init(o.Now)
	if base.Scheme == "file" {
		u.label = "file:" + strconv.Itoa(number)
		u.files = &pool{process: directory(base.Path).answer, limit: func() int { return directoryReads }}
		return u
	}
	if base.User != nil {
		var request http.Request
		request.Header = make(http.Header)
		password, _ := base.User.Password()
		request.SetBasicAuth(base.User.Username(), password)
		u.authorization = request.Header.Get("Authorization")
	}
	u.server = newServer(base, o, u.Report)
	return u
}

// String returns the URL without user and password: the origin that the index records.
func (u *Upstream) String() string { return u.name }

// URL returns the URL, which may have a user and password.
func (u *Upstream) URL() *url.URL { return u.base }

// IsUp reports whether the upstream is asked now. If it isn't, it has failed lately, and is
// probed in the background until it answers.
func (u *Upstream) IsUp() bool { return u.outage() == nil }

// Report records the outcome of a request that was not one of Ask, such as for a nar. nil means
// that the upstream answered, with any status. An error means that it couldn't be reached, or
// was silent, after that time.
func (u *Upstream) Report(err error, took time.Duration) {
	fell, rose := u.record(err, took)
	switch {
	case fell:
		u.options.Log.Warn("an upstream can't be reached: it is skipped until it answers", "upstream", u.name, "error", err)
	case rose:
		u.rejoin()
	}
}

// rejoin logs that the upstream is up again.
func (u *Upstream) rejoin() {
	u.options.Log.Info("an upstream answers again", "upstream", u.name)
	u.logged.Forget()
}

// warn logs an error of a kind once an hour.
func (u *Upstream) warn(kind string, err error) {
	if u.logged.IsDue(kind, u.options.Now()) {
		u.options.Log.Log(context.Background(), slog.LevelWarn, "an upstream can't tell whether it has an item", "upstream", u.name, "error", err)
	}
}

// current returns the server to ask; nil for a directory.
func (u *Upstream) current() *server {
	if secure := u.secure.Load(); secure != nil {
		return secure
	}
	return u.server
}

// upgrade returns the server to ask instead of one that redirects a request to the same URL with
// https; nil if it redirects to something else.
func (u *Upstream) upgrade(from *server, request *http.Request, location string) *server {
	to, err := request.URL.Parse(location)
	if err != nil || from != u.server || u.base.Scheme != "http" || u.base.Port() != "" && u.base.Port() != "80" {
		return nil
	}
	want := *request.URL
	want.Scheme, want.Host, to.Host = "https", strings.TrimSuffix(u.base.Host, ":80"), strings.TrimSuffix(to.Host, ":443")
	if to.String() != want.String() {
		return nil
	}
	if secure := u.secure.Load(); secure != nil {
		return secure
	}
	base := *u.base
	base.Scheme, base.Host = want.Scheme, want.Host
	secure := newServer(&base, u.options, u.Report)
	if u.secure.CompareAndSwap(nil, secure) {
		u.options.Log.Info("an upstream redirects to https, and is asked there from now on: change its URL to save the first round trip", "upstream", u.name)
	}
	return u.secure.Load()
}

// header returns the header of requests for narinfos.
func (u *Upstream) header(via []string) http.Header {
	header := make(http.Header)
	if u.authorization != "" {
		header.Set("Authorization", u.authorization)
	}
	peer.AddVia(header, via, u.options.Instance)
	return header
}

// newRequest makes a request for a file of the upstream. server is nil for a directory.
func (u *Upstream) newRequest(ctx context.Context, server *server, name string, header http.Header) (*http.Request, error) {
	base := u.name
	if server != nil {
		base = peer.Name(server.base)
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, base+"/"+name, nil)
	if err != nil {
		return nil, peer.Explain(err)
	}
	request.Header = header
	return request, nil
}

func (u *Upstream) close() {
	for _, server := range []*server{u.server, u.secure.Load()} {
		if server != nil {
			server.close()
		}
	}
}

// backoff is how long to wait between two probes.
var backoff = pace.Backoff{First: time.Second, Last: time.Minute}

// watch probes the upstream once, and while it is down.
func (u *Upstream) watch(ctx context.Context) {
	if err := u.probe(ctx); err != nil && ctx.Err() == nil {
		u.Report(err, slowFailure)
	}
	for {
		select {
		case <-u.fell:
		case <-ctx.Done():
			return
		}
		for failures := u.outages(); !u.IsUp(); failures++ {
			if pace.Sleep(ctx, backoff.Jittered(failures)) != nil {
				return
			}
			if err := u.probe(ctx); err != nil && ctx.Err() == nil {
				u.Report(err, 0)
			} else if err == nil && u.rise() {
				u.rejoin()
			}
		}
	}
}

// probeFile is a file that most upstreams have. Any answer will do.
const probeFile = "nix-cache-info"

// probe returns an error unless the upstream answers.
func (u *Upstream) probe(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, u.options.SilenceTimeout)
	defer cancel()
	server := u.current()
	request, err := u.newRequest(ctx, server, probeFile, u.header(nil))
	if err != nil {
		return err
	}
	var response *pipeline.Response
	if server != nil {
		response, _, err = server.get(ctx, request)
	} else {
		probe := &probe{request, make(chan error, 1)}
		u.files.Send(probe)
		select {
		case err := <-probe.done:
			return err
		case <-ctx.Done(): // the directory may hang
			return pipeline.ErrSilent
		}
	}
	if err != nil {
		return err
	}
	if response.Status >= http.StatusInternalServerError {
		return errStatus(response.Status)
	}
	return nil
}

func errStatus(status int) error {
	return redact.Public(fmt.Sprintf("it answers %d %s", status, http.StatusText(status)))
}

// probe is a call for a file of a directory.
type probe struct {
	request *http.Request
	done    chan error
}

func (p *probe) Context() context.Context                             { return p.request.Context() }
func (p *probe) Place() turns.Place                                   { return turns.Place{} }
func (p *probe) Request() *http.Request                               { return p.request }
func (p *probe) Relate(response *pipeline.Response) pipeline.Relation { return pipeline.Own }
func (p *probe) Done(_ *pipeline.Response, err error)                 { p.done <- err }
