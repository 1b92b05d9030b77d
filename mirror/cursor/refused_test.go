package cursor

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"nar-herder/narinfo/signing"
	"nar-herder/storage"
)

// TestRefusedWithOtherKeys: after a change of the keys, further refusals don't hide that some
// narinfos were refused with the former keys, which may never have been looked at again.
func TestRefusedWithOtherKeys(t *testing.T) {
	text, err := os.ReadFile(filepath.Join("..", "..", "testdata", "production", "ci.guix.gnu.org.pub"))
	if err != nil {
		t.Fatal(err)
	}
	key, err := signing.ParseKeys(text)
	if err != nil {
		t.Fatal(err)
	}
	former, now := new(signing.Keys), time.Now()
	refused := Refused{}.With(former, storage.Unauthorized, 1, now).With(former, storage.Unauthorized, 1, now)
	if refused.IsOutdated(former) || !refused.IsOutdated(key) {
		t.Errorf("%+v", refused)
	}
	for _, keys := range []*signing.Keys{key, former, nil} {
		if refused = refused.With(keys, storage.Unsigned, 1, now); !refused.IsOutdated(keys) {
			t.Errorf("%+v is not outdated", refused)
		}
	}
}
