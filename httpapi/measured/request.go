package measured

import (
	"time"

	"github.com/valyala/fasthttp"

	"nar-herder/httpapi/clients"
)

// Request is what an access log needs of a request.
type Request struct {
	Time                                                              time.Time // of the first byte
	Client, Method, Target, Protocol, Host, Range, Referer, UserAgent string
	// Peer is the client with its port, if it has connected directly.
	Peer string
}

// Describe returns what an access log needs of a request that has begun at a time.
func Describe(ctx *fasthttp.RequestCtx, begun time.Time, proxies clients.Proxies) *Request {
	client := "unix:" // as nginx
	if address := proxies.Client(ctx); address.IsValid() {
		client = address.String()
	}
	header := &ctx.Request.Header
	return &Request{
		Time: begun, Client: client, Method: string(header.Method()), Target: string(header.RequestURI()),
		Protocol: string(header.Protocol()), Host: string(header.Host()), Range: string(header.Peek(fasthttp.HeaderRange)),
		Referer: string(header.Referer()), UserAgent: string(header.UserAgent()),
		Peer: proxies.ClientName(ctx),
	}
}
