package upstream

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	"nar-herder/narinfo"
	"nar-herder/storage"
	"nar-herder/upstream/pipeline"
	"nar-herder/upstream/turns"
)

// call asks one upstream for one narinfo.
type call struct {
	question       *question
	item, upstream int
	server         *server // nil for a directory
	request        *http.Request
	isPlain        bool // it was sent again without pipelining

	// Of the last response:
	response *pipeline.Response
	narinfo  *narinfo.Narinfo
	err      error // of a text that isn't a narinfo
}

// setServer prepares the request. If that is impossible, it records this, and returns false.
func (c *call) setServer(server *server, header http.Header) (ok bool) {
	var err error
	u := c.question.set.upstreams[c.upstream]
	c.server = server
	if c.request, err = u.newRequest(c.question.ctx, server, c.question.hashes[c.item].String()+".narinfo", header); err != nil {
		c.question.receive(c.item, c.upstream, reply{err: fmt.Errorf("%s: %w", u, err)})
		return false
	}
	return true
}

// Context implements [pipeline.Call].
func (c *call) Context() context.Context { return c.question.ctx }

// Place implements [pipeline.Call].
func (c *call) Place() turns.Place { return c.question.place(c.item) }

// Request implements [pipeline.Call].
func (c *call) Request() *http.Request { return c.request }

// Relate implements [pipeline.Call].
func (c *call) Relate(response *pipeline.Response) pipeline.Relation {
	c.response, c.narinfo, c.err = response, nil, nil
	if response.Status != http.StatusOK {
		return pipeline.Unclear
	}
	if c.narinfo, c.err = narinfo.Parse(response.Body); c.err != nil {
		return pipeline.Unclear
	}
	if c.narinfo.StorePath.Hash != c.question.hashes[c.item] {
		return pipeline.Other
	}
	return pipeline.Own
}

// Done implements [pipeline.Call].
func (c *call) Done(response *pipeline.Response, err error) {
	u := c.question.set.upstreams[c.upstream]
	if c.question.ctx.Err() != nil {
		return // everything is decided
	}
	if c.server != nil && !c.isPlain && (errors.Is(err, errHTTP2) || err == nil && isRedirect(response.Status)) {
		if response != nil {
			if secure := u.upgrade(c.server, c.request, response.Header.Get("Location")); secure != nil {
				again := &call{question: c.question, item: c.item, upstream: c.upstream} // c may still be being sent
				if again.setServer(secure, c.request.Header) {
					secure.send(again)
				}
				return
			}
		}
		c.isPlain = true
		c.server.sendPlain(c)
		return
	}
	r, outcome := c.judge(response, err)
	u.requests[outcome].Add(1)
	if r.err != nil {
		r.err = fmt.Errorf("%s: %w", u, r.err)
		u.warn(outcomeNames[outcome], r.err)
	}
	c.question.receive(c.item, c.upstream, r)
}

// judge returns what a response says about the item.
func (c *call) judge(response *pipeline.Response, err error) (reply, outcome) {
	if err != nil {
		return reply{err: err}, failed
	}
	switch response.Status {
	case http.StatusOK:
		if c.response != response {
			c.Relate(response)
		}
		switch {
		case c.err != nil:
			return reply{err: c.err}, invalid
		case c.narinfo.StorePath.Hash != c.question.hashes[c.item]:
			return reply{err: fmt.Errorf("asked for the narinfo of %s, it sends that of %s", c.question.hashes[c.item], c.narinfo.StorePath.BaseName())}, invalid
		}
		if err := storage.CheckNarinfo(c.narinfo); err != nil {
			return reply{err: fmt.Errorf("the narinfo of %s: %w", c.narinfo.StorePath.BaseName(), err)}, invalid
		}
		return reply{narinfo: c.narinfo, maxAge: maxAge(response.Header)}, found
	case http.StatusAccepted:
		age := maxAge(response.Header)
		if age < 0 {
			age = bakingTTL
		}
		return reply{absent: true, maxAge: age}, absent
	case http.StatusNotFound, http.StatusGone:
		return reply{absent: true, maxAge: maxAge(response.Header)}, absent
	}
	return reply{err: errStatus(response.Status)}, status
}

func isRedirect(status int) bool {
	switch status {
	case http.StatusMovedPermanently, http.StatusFound, http.StatusSeeOther, http.StatusTemporaryRedirect, http.StatusPermanentRedirect:
		return true
	}
	return false
}
