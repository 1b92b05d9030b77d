package peer

import (
	"net/url"
	"testing"
)

// TestHasPassed: instances are distinguished from proxies.
func TestHasPassed(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		via  []string
		want bool
	}{
		{nil, false}, {[]string{""}, false}, {[]string{"1.1 varnish, 1.0 nginx"}, false}, {[]string{"nar-herder-x"}, false},
		{[]string{"1.1 nar-herder-x"}, true}, {[]string{"1.1 varnish", "1.0 a,1.1 nar-herder-x (comment)"}, true},
	} {
		if got := HasPassed(test.via); got != test.want {
			t.Errorf("%q: %v", test.via, got)
		}
	}
}

// TestSameURL: neither a slash at the end nor the user matters.
func TestSameURL(t *testing.T) {
	t.Parallel()
	parse := func(text string) *url.URL {
		u, err := ParseURL(text)
		if err != nil {
			t.Fatal(err)
		}
		return u
	}
	if !SameURL(parse("https://a.example/x/"), parse("https://a.example/x")) || SameURL(parse("https://a.example/x"), parse("https://a.example")) {
		t.Error("wrong")
	}
	private := parse("https://user:secret@a.example/x/")
	if !SameURL(private, parse("https://a.example/x")) || Name(private) != "https://a.example/x" || New(private, Self{}).String() != Name(private) {
		t.Errorf("with a password: %s, %s", Name(private), New(private, Self{}))
	}
}
