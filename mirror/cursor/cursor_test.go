package cursor

import (
	"maps"
	"testing"
	"time"
)

// FuzzSeen: the remembered changes survive encoding and decoding.
func FuzzSeen(f *testing.F) {
	text, err := Seen{Fingerprint{1, 2}: time.Unix(1_767_225_600, 0).UTC(), Fingerprint{3}: time.Time{}}.MarshalText()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text)
	f.Add(text[:len(text)-4])
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, text []byte) {
		var first, second Seen
		if first.UnmarshalText(text) != nil {
			return
		}
		written, err := first.MarshalText()
		if err == nil {
			err = second.UnmarshalText(written)
		}
		if err != nil || !maps.EqualFunc(first, second, time.Time.Equal) {
			t.Fatalf("%v, and then %v, %v", first, second, err)
		}
	})
}
