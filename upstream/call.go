package upstream

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	"nar-herder/narinfo"
	"nar-herder/upstream/pipeline"
)

// call asks one upstream for one narinfo.
type call struct {
	question       *question
	item, upstream int
	request        *http.Request
	plain          bool // it isn't pipelined

	// Of the last response:
	response *pipeline.Response
	narinfo  *narinfo.Narinfo
	err      error // of a text that isn't a narinfo
}

// Context implements [pipeline.Call].
func (c *call) Context() context.Context { return c.question.ctx }

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
	if !c.plain && u.server != nil && (errors.Is(err, errHTTP2) || err == nil && isRedirect(response.Status)) {
		c.plain = true
		u.server.plain.Send(c)
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
