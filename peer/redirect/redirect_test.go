package redirect

import (
	"errors"
	"net/netip"
	"net/url"
	"testing"
)

func TestIsPublic(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]bool{
		"1.1.1.1": true, "141.80.181.40": true, "172.32.0.1": true, "100.128.0.1": true, "2606:4700::1111": true, "2a01:4f8::1": true, "2001:4860:4860::8888": true,
		"64:ff9b::101:101": true, "::ffff:1.1.1.1": true,
		// This machine, its network, and nobody's.
		"127.0.0.1": false, "127.9.9.9": false, "0.0.0.0": false, "0.1.2.3": false, "10.0.0.1": false, "172.16.0.1": false, "192.168.1.1": false,
		"169.254.169.254": false, "100.64.0.1": false, "100.100.100.200": false, "192.0.0.192": false, "168.63.129.16": false, "224.0.0.1": false, "255.255.255.255": false, "240.0.0.1": false,
		"192.0.2.1": false, "198.18.0.1": false, "198.51.100.1": false, "203.0.113.1": false, "192.88.99.1": false,
		"::1": false, "::": false, "fe80::1": false, "fc00::1": false, "fd00:ec2::254": false, "ff02::1": false, "fec0::1": false, "2001:db8::1": false, "3fff::1": false, "100::1": false,
		// IPv4 addresses within.
		"::ffff:127.0.0.1": false, "::ffff:169.254.169.254": false, "::ffff:10.0.0.1": false, "::127.0.0.1": false, "64:ff9b::7f00:1": false, "64:ff9b::a9fe:a9fe": false,
		"64:ff9b:1::7f00:1": false, "2002:7f00:1::1": false, "2001:0:7f00:1::1": false,
	} {
		if got := isPublic(netip.MustParseAddr(text)); got != want {
			t.Errorf("%s: %v", text, got)
		}
	}
}

func TestIsOwn(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		base, to string
		want     bool
	}{
		{"http://h/sub", "http://h/other", true}, {"http://h", "http://H:80/", true}, {"http://h", "https://h/", true}, {"https://h", "https://h:443/x", true},
		{"http://h:8734", "http://h:8734/", true}, {"http://[::1]:8734", "http://[::1]:8734/", true},
		{"https://h", "http://h/", false}, {"http://h", "http://h:22/", false}, {"http://h:8734", "https://h/", false}, {"http://h", "https://h:8443/", false},
		{"http://h", "http://h.example/", false}, {"http://127.0.0.1:8734", "http://127.0.0.1:6379/", false}, {"http://h", "ftp://h/", false},
	} {
		base, baseErr := url.Parse(test.base)
		to, err := url.Parse(test.to)
		if err := errors.Join(baseErr, err); err != nil {
			t.Fatal(err)
		}
		if got := (&Transport{base: base}).isOwn(to); got != test.want {
			t.Errorf("%s to %s: %v", test.base, test.to, got)
		}
	}
}
