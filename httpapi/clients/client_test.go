package clients

import (
	"net/netip"
	"testing"
)

func FuzzParseForwarded(f *testing.F) {
	for _, seed := range []string{"192.0.2.1", "192.0.2.1:80", "[2001:db8::1]", "[2001:db8::1]:80", "::ffff:192.0.2.1", "fe80::1%eth0", "fe80::1%a\" b", "[fe80::1%x]:80", "unknown", "_hidden", "", "[", "1.2.3.4]"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		address, ok := parseForwarded(text)
		if !ok {
			return
		}
		if !address.IsValid() || address.Is4In6() || address.Zone() != "" {
			t.Fatalf("%q is %v", text, address)
		}
		if again, ok := parseForwarded(address.String()); !ok || again != address {
			t.Errorf("%q is %v, and then %v, %v", text, address, again, ok)
		}
	})
}

func TestNetworkOf(t *testing.T) {
	t.Parallel()
	for address, want := range map[string]string{
		"192.0.2.1": "192.0.2.1/32", "::ffff:192.0.2.1": "192.0.2.1/32", "2001:db8:1:2:3::4": "2001:db8:1:2::/64", "fe80::1%eth0": "fe80::/64",
	} {
		if got := NetworkOf(netip.MustParseAddr(address)); got.String() != want {
			t.Errorf("%s: %s, want %s", address, got, want)
		}
	}
	if got := NetworkOf(netip.Addr{}); got != (netip.Prefix{}) {
		t.Errorf("no address: %s", got)
	}
}
