package engine

import (
	"bytes"
	"slices"

	"github.com/valyala/fasthttp"
)

// Ahead returns lines that the client has sent after the request that is being answered, without
// waiting. It returns each line once, and may also return lines of this request and of earlier
// ones. The lines are valid until the request is answered.
func Ahead(ctx *fasthttp.RequestCtx) []byte {
	c, ok := ctx.Conn().(*connection)
	if !ok {
		return nil
	}
	c.readAhead()
	if c.tls != nil {
		c.unseal()
	}
	unseen := c.ahead[c.seen:]
	complete := bytes.LastIndexByte(unseen, '\n') + 1
	if complete > 0 {
		lines := unseen[:complete]
		if len(c.recent) > 0 {
			lines = slices.Concat(c.recent, lines)
		}
		c.recent, c.seen = nil, c.seen+complete
		return lines
	}
	complete = bytes.LastIndexByte(c.recent, '\n') + 1
	lines := c.recent[:complete]
	c.recent = c.recent[complete:]
	return lines
}
