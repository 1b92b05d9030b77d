package httpapi

import (
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/valyala/fasthttp"

	"nar-herder/httpapi/accesslog"
	"nar-herder/httpapi/clients"
	"nar-herder/httpapi/engine"
	"nar-herder/httpapi/measured"
	"nar-herder/internal/testlog"
)

// TestClientAddress sends requests through proxies, some of which are trusted.
func TestClientAddress(t *testing.T) {
	t.Parallel()
	prefix := netip.MustParsePrefix
	local := clients.Proxies{Networks: []netip.Prefix{prefix("127.0.0.0/8"), prefix("::1/128")}, Unix: true}
	farm := clients.Proxies{Networks: []netip.Prefix{prefix("10.0.0.0/8"), prefix("192.0.2.7/32"), prefix("fd00::/8")}}
	for _, test := range []struct {
		trusted   clients.Proxies
		remote    string // "unix", or an address
		forwarded []string
		want      string // "" if unknown
	}{
		{local, "127.0.0.1", nil, "127.0.0.1"},
		{local, "127.0.0.1", []string{"198.51.100.1"}, "198.51.100.1"},
		{local, "::1", []string{"2001:db8::1"}, "2001:db8::1"},
		{local, "127.9.9.9", []string{"198.51.100.1"}, "198.51.100.1"},
		{local, "unix", nil, ""},
		{local, "unix", []string{"198.51.100.1"}, "198.51.100.1"},
		// Clients that connect directly can forge the header.
		{local, "203.0.113.1", []string{"198.51.100.1"}, "203.0.113.1"},
		{local, "203.0.113.1", []string{"127.0.0.1"}, "203.0.113.1"},
		{local, "127.0.0.1", []string{"8.8.8.8, 198.51.100.1"}, "198.51.100.1"},
		{local, "127.0.0.1", []string{"127.0.0.1, 198.51.100.1"}, "198.51.100.1"},
		{local, "127.0.0.1", []string{"8.8.8.8", "198.51.100.1"}, "198.51.100.1"},
		// Through several trusted proxies.
		{farm, "10.0.0.1", []string{"8.8.8.8, 198.51.100.1, 10.1.2.3,192.0.2.7"}, "198.51.100.1"},
		{farm, "10.0.0.1", []string{"8.8.8.8, 198.51.100.1", "10.1.2.3", "192.0.2.7"}, "198.51.100.1"},
		{farm, "10.0.0.1", []string{"10.1.2.3, 10.1.2.4"}, "10.1.2.3"},
		{farm, "::ffff:10.0.0.1", []string{"::ffff:198.51.100.1"}, "198.51.100.1"},
		{farm, "fd00::1", []string{"[2001:db8::1]:4711"}, "2001:db8::1"},
		{farm, "10.0.0.1", []string{"198.51.100.1:4711"}, "198.51.100.1"},
		{farm, "10.0.0.1", []string{"[2001:db8::1]"}, "2001:db8::1"},
		{farm, "127.0.0.1", []string{"198.51.100.1"}, "127.0.0.1"},
		{farm, "unix", []string{"198.51.100.1"}, ""},
		{clients.Proxies{}, "127.0.0.1", []string{"198.51.100.1"}, "127.0.0.1"},
		// Malformed addresses are ignored.
		{local, "127.0.0.1", []string{"unknown"}, "127.0.0.1"},
		{local, "127.0.0.1", []string{""}, "127.0.0.1"},
		{local, "127.0.0.1", []string{"198.51.100.1,"}, "127.0.0.1"},
		{local, "127.0.0.1", []string{"198.51.100.1, _hidden"}, "127.0.0.1"},
		{local, "127.0.0.1", []string{"nonsense, 198.51.100.1"}, "198.51.100.1"},
		{farm, "10.0.0.1", []string{"nonsense, 10.0.0.2"}, "10.0.0.1"},
		{local, "127.0.0.1", []string{"1.2.3.4.5"}, "127.0.0.1"},
	} {
		opts := options()
		opts.TrustedProxies = test.trusted
		log := new(testlog.Buffer)
		opts.AccessLog = &accesslog.Log{Out: log, Format: accesslog.Debug}
		s := New(corpus(), opts)
		var remote net.Addr = &net.UnixAddr{Name: "@", Net: "unix"}
		if test.remote != "unix" {
			remote = &net.TCPAddr{IP: net.ParseIP(test.remote), Port: 4000}
		}
		var ctx fasthttp.RequestCtx
		ctx.Init(&fasthttp.Request{}, remote, nil)
		for _, line := range test.forwarded {
			ctx.Request.Header.Add("X-Forwarded-For", line)
		}
		got := ""
		if address := s.options.TrustedProxies.Client(&ctx); address.IsValid() {
			got = address.String()
		}
		if got != test.want {
			t.Errorf("%s, %q: %s, want %s", test.remote, test.forwarded, got, test.want)
		}
		s.handle(&ctx)
		opts.AccessLog.Finished([]measured.Answer{{Request: engine.Describe(&ctx, opts.TrustedProxies)}})
		want := remote.String()
		if test.want != "" && (test.remote == "unix" || netip.MustParseAddr(test.remote).Unmap().String() != test.want) {
			want = test.want
		}
		if logged := log.String(); !strings.Contains(logged, "client="+want+"\n") && !strings.Contains(logged, `client="`+want+"\"\n") {
			t.Errorf("%s, %q: logged %s, want %s", test.remote, test.forwarded, logged, want)
		}
	}
}
