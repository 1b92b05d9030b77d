package main

import (
	"errors"
	"fmt"
	"net/url"
	"strings"

	"nar-herder/internal/redact"
	"nar-herder/peer"
)

// upstreamOptions are the options about upstreams.
type upstreamOptions struct {
	Upstream     []upstreamValue `sep:"none" placeholder:"URL" help:"Substitute server to cache, of any kind: https://HOST, or file:// with a directory. May be repeated, in order of preference."`
	UpstreamKeep intervalValue   `default:"none" placeholder:"DURATION" help:"Forget items of upstreams that no client has requested for this long, or none (default: ${default})."`
	UpstreamDown string          `default:"error" enum:"error,not-found" placeholder:"error|not-found" help:"How to answer for unknown items while no upstream can be reached: with an error, or with a 404 that clients cache for a minute (default: ${default})."`
}

// upstreamValue is the URL of an upstream: http, https, or file with an absolute path.
type upstreamValue struct{ url *url.URL }

func (u *upstreamValue) UnmarshalText(text []byte) (err error) {
	if !strings.HasPrefix(string(text), "file:") {
		u.url, err = peer.ParseURL(string(text))
		return err
	}
	u.url, err = url.Parse(string(text))
	if err != nil || u.url.Host != "" || !strings.HasPrefix(u.url.Path, "/") || u.url.RawQuery != "" || u.url.Fragment != "" {
		return fmt.Errorf("invalid URL of a directory %q: want file:///DIRECTORY", redact.Address(string(text)))
	}
	return nil
}

func (o *upstreamOptions) validate() error {
	if len(o.Upstream) == 0 && (o.UpstreamKeep != 0 || o.UpstreamDown != "error") {
		return errors.New("--upstream-keep and --upstream-down need --upstream")
	}
	return nil
}
