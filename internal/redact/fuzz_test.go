package redact

import (
	"strings"
	"testing"
)

// FuzzText: the password and token of a URL are removed, whatever surrounds it.
func FuzzText(f *testing.F) {
	f.Add("", "")
	f.Add(`Get "`, `": refused`)
	f.Add("stored-on=http://u:p@x,stored-on=", ",and more @ x")
	f.Add("http://a%3A%2F%2Fb@c ", "&sig=d?token=e")
	f.Add("a:b@", "@c")
	f.Add("\x00\xff ", " \xff")
	const password, token = "hunter2hunter2", "tokentokentoken"
	f.Fuzz(func(t *testing.T, before, after string) {
		if strings.Contains(before+after, password) || strings.Contains(before+after, token) {
			return
		}
		for _, text := range []string{
			before + " https://user:" + password + "@host/a " + after,
			before + " https://host/a?token=" + token + " " + after,
			before + "https://user:" + password + "@host/a?token=" + token + after,
		} {
			if got := Text(text); strings.Contains(got, password) || strings.Contains(got, token) {
				t.Errorf("%q becomes %q", text, got)
			}
		}
		if got := Address(before + "https://user:" + password + "@host" + after); strings.Contains(got, password) {
			t.Errorf("an address becomes %q", got)
		}
	})
}
