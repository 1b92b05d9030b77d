package mirror

import (
	"errors"
	"strings"
	"testing"
	"time"

	"nar-herder/peer"
	"nar-herder/storage"
)

// FuzzRead: a change with any texts is refused, or is about one item.
func FuzzRead(f *testing.F) {
	whole := string(testInfo(1, 1, 1).Text)
	for _, datetime := range []string{"2026-01-01 00:00:00", "2026-01-01T00:00:00Z", "2026-01-01 00:00:00.5", "0000-00-00 00:00:00", "9999-12-31 23:59:59", "soon", ""} {
		f.Add(datetime, peer.Removal, testPath(1).String(), false)
		f.Add(datetime, peer.Addition, whole, false)
	}
	for _, data := range []string{"", "/gnu/store/", "/gnu/store/../etc/passwd", testPath(1).BaseName() + "/x", whole[:len(whole)/2], strings.Replace(whole, "nar/none/", "../../", 1)} {
		f.Add("2026-01-01 00:00:00", peer.Removal, data, true)
		f.Add("2026-01-01 00:00:00", peer.Addition, data, true)
	}
	f.Add("2026-01-01 00:00:00", "other", whole, true)
	f.Fuzz(func(t *testing.T, datetime, kind, data string, sure bool) {
		c := peer.Change{Datetime: datetime, Change: kind, Data: data}
		change, err := read(c)
		if !sure && err == nil && change.Narinfo != nil && storage.Authorize(change.Narinfo, nil) != nil {
			return
		}
		if err != nil {
			if !errors.Is(err, errUnreadable) {
				t.Fatal(err)
			}
			return
		}
		switch {
		case change.At.Nanosecond() != 0, kind != peer.Addition && kind != peer.Removal, (kind == peer.Addition) != (change.Narinfo != nil):
			t.Fatalf("%+v is %+v", c, change)
		case change.Narinfo != nil && (change.Narinfo.StorePath.Hash != change.Hash || string(change.Narinfo.Text) != data):
			t.Fatalf("%+v is about %s", c, change.Hash)
		case change.Narinfo == nil && !strings.Contains(data, change.Hash.String()):
			t.Fatalf("%+v is about %s", c, change.Hash)
		}
		// A peer that gets it from this instance reads the same.
		c.Datetime = change.At.Format(time.DateTime)
		if again, err := read(c); err != nil || !again.At.Equal(change.At) {
			t.Fatalf("%s is %v, %v", c.Datetime, again.At, err)
		}
	})
}
