package page

import "fmt"

// Keys are the public keys of a server, as texts. The first is at /signing-key.pub, the second at
// /signing-key-2.pub.
type Keys []string

// Names returns the names of the keys.
func (k Keys) Names() []string {
	names := make([]string, len(k))
	for n := range names {
		names[n] = keyName(n)
	}
	return names
}

// Text returns the key with a name, or "" if there is none.
func (k Keys) Text(name string) string {
	for n, key := range k {
		if name == keyName(n) {
			return key
		}
	}
	return ""
}

// keyName returns the name of the Nth key, counted from 0.
func keyName(n int) string {
	if n == 0 {
		return "signing-key.pub"
	}
	return fmt.Sprintf("signing-key-%d.pub", n+1)
}
