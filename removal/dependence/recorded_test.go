package dependence

import (
	"context"
	"path/filepath"
	"testing"

	"nar-herder/storage/index"
)

// TestRecordedPrivate: passwords that an earlier version stored are erased, and the
// instances stay.
func TestRecordedPrivate(t *testing.T) {
	t.Parallel()
	x, err := index.Open(t.Context(), filepath.Join(t.TempDir(), "index.db"), index.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer x.Close()
	err = x.Update(t.Context(), func(tx *index.Tx) error {
		return tx.SetSetting(setting, `["http://user:secret@a.example/x/","http://b.example","http://a.example/x","http://token@c.example:80"]`)
	})
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		urls, err := Recorded(context.Background(), x)
		var got []string
		for _, u := range urls {
			got = append(got, u.String())
		}
		if err != nil || len(got) != 3 || got[0] != "http://a.example/x/" && got[0] != "http://a.example/x" || got[1] != "http://b.example" || got[2] != "http://c.example:80" {
			t.Errorf("%q, %v", got, err)
		}
		if text, err := x.Setting(t.Context(), setting); err != nil || text != `["http://a.example/x","http://b.example","http://c.example:80"]` {
			t.Errorf("%s, %v", text, err)
		}
	}
}
