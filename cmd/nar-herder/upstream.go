package main

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"nar-herder/internal/redact"
	"nar-herder/narinfo/signing"
	"nar-herder/peer"
	"nar-herder/peer/failover"
	"nar-herder/upstream"
	"nar-herder/upstream/files"
)

// upstreamOptions are the options about upstreams.
type upstreamOptions struct {
	Upstream     []upstreamValue `group:"upstreams" sep:"none" placeholder:"URL" help:"Substitute server to cache, of any kind: https://HOST, or file:// with a directory. May be repeated, in order of preference."`
	UpstreamKeep intervalValue   `group:"upstreams" default:"none" placeholder:"DURATION" help:"Forget items of upstreams that no client has requested for this long, or none (default: ${default})."`
	UpstreamDown string          `group:"upstreams" default:"error" enum:"error,not-found" placeholder:"error|not-found" help:"How to answer for unknown items while no upstream can be reached: with an error, or with a 404 that clients cache for a minute (default: ${default})."`
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

func (c *serverCommand) validateUpstreams() error {
	if len(c.Upstream) == 0 && (c.UpstreamKeep != 0 || c.UpstreamDown != "error") {
		return errors.New("--upstream-keep and --upstream-down need --upstream")
	}
	for i, u := range c.Upstream {
		name := peer.Name(u.url)
		switch {
		case slices.ContainsFunc(c.Upstream[:i], func(other upstreamValue) bool { return peer.SameURL(other.url, u.url) }):
			return fmt.Errorf("--upstream=%s is given twice: leave one of them out", name)
		case c.Mirror != nil && peer.SameURL(c.Mirror.URL, u.url):
			return fmt.Errorf("--upstream=%s is also --mirror, which has all of its items already: leave one of them out", name)
		case c.isOwnAddress(u.url):
			return fmt.Errorf("--upstream=%s is where this server itself listens (--host, --port): name another server", name)
		}
	}
	return nil
}

// isOwnAddress reports whether a URL has the address and port that the server listens on.
func (c *serverCommand) isOwnAddress(u *url.URL) bool {
	port := u.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[u.Scheme]
	}
	host := c.Host
	switch {
	case port == strconv.Itoa(int(c.Port)):
	case u.Scheme == "https" && c.TLSPort != nil && port == strconv.Itoa(int(*c.TLSPort)):
		host = c.tlsHost()
	default:
		return false
	}
	host = strings.Trim(host, "[]")
	own, there := localAddress(host), localAddress(u.Hostname())
	return strings.EqualFold(host, u.Hostname()) ||
		own.IsValid() && there.IsValid() && (own == there || own.IsUnspecified() && there.IsLoopback())
}

// localAddress parses an address, or localhost; it is invalid for other names.
func localAddress(host string) netip.Addr {
	if host == "localhost" {
		host = "127.0.0.1"
	}
	address, _ := netip.ParseAddr(host) // invalid after an error
	return address.Unmap()
}

// newUpstreams returns the upstreams, or nil without any.
func (c *serverCommand) newUpstreams(store *opened, keys *signing.Keys, log *slog.Logger) *upstream.Set {
	if len(c.Upstream) == 0 {
		return nil
	}
	options := upstream.Options{Keys: keys, Instance: store.Instance(), AllowPrivateRedirects: c.AllowPrivateRedirects, Log: log}
	for _, u := range c.Upstream {
		options.URLs = append(options.URLs, u.url)
	}
	return upstream.New(options)
}

// newFiles returns the source of the nars that are not stored here, or nil without upstreams
// and peers.
func (s *subsystems) newFiles(c *serverCommand, log *slog.Logger) *failover.Source {
	if s.upstreams == nil && len(s.peers) == 0 {
		return nil
	}
	options := files.Options{Peers: s.peers, Origins: s.store.index.Origins, Self: c.self(s.store), Log: log}
	if s.upstreams != nil {
		options.Upstreams = s.upstreams.Upstreams()
	}
	return files.New(options)
}

// upstreamWarnings returns the warnings for the health. Known items are served in any case.
func (s *subsystems) upstreamWarnings() (warnings []string) {
	all := s.upstreams.Status()
	for _, status := range all {
		if !status.Up {
			warnings = append(warnings, fmt.Sprintf("the upstream %s can't be reached since %s: %s", status.Label, status.Since.UTC().Format(time.RFC3339), redact.Fault(status.Err)))
		}
	}
	if len(warnings) == len(all) {
		warnings = append(warnings, "no upstream can be reached: only known items are served")
	}
	return warnings
}
