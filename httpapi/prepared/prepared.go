// Package prepared has answers for narinfos as they are kept in memory.
package prepared

import (
	"strconv"
	"time"

	"github.com/valyala/fasthttp"
)

// Answer is a prepared answer for a narinfo.
type Answer struct {
	Body []byte
	// CacheControl is the header; "" for none.
	CacheControl string
	// Until is when the answer of an upstream expires, and TTL bounds how long clients may
	// cache it, instead of CacheControl. It is zero for an item that is not of an upstream.
	Until time.Time
	TTL   time.Duration
}

// HasExpired reports whether the upstreams must be asked again.
func (a *Answer) HasExpired() bool { return !a.Until.IsZero() && !time.Now().Before(a.Until) }

// SetCacheControl sets the header, if there is one.
func (a *Answer) SetCacheControl(ctx *fasthttp.RequestCtx) {
	if a.Until.IsZero() {
		if a.CacheControl != "" {
			ctx.Response.Header.Set(fasthttp.HeaderCacheControl, a.CacheControl)
		}
		return
	}
	left := max(0, min(a.TTL, time.Until(a.Until)))
	ctx.Response.Header.SetBytesV(fasthttp.HeaderCacheControl, strconv.AppendInt([]byte("max-age="), int64(left/time.Second), 10))
}
