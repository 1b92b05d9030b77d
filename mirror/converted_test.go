package mirror

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"nar-herder/mirror/original"
	"nar-herder/mirror/original/convert"
)

// TestConverted: the database of an original that was a mirror is converted, and
// follows on without a dump: what it has from the source goes when it goes there.
func TestConverted(t *testing.T) {
	t.Parallel()
	o := newOriginal(t)
	for n := range 20 {
		o.added(at(100+n), n, 1)
	}
	o.dump(false) // which is what a mirror has that is up to date
	database := filepath.Join(t.TempDir(), "index.db")
	if err := os.WriteFile(database, o.dumped, 0o644); err != nil {
		t.Fatal(err)
	}
	o.publish(nil)
	done, err := convert.InPlace(t.Context(), database, convert.Options{Mirrored: true, Settings: ConvertedSettings})
	if err != nil || !done {
		t.Fatal(done, err)
	}
	own := openInstance(t, database)
	f := follow(t, own, o.instance, nil)
	o.added(at(119), 30, 1) // in the same second as the last
	o.removed(at(121), 4)
	f.same(o.instance)
	o.added(at(300), 31, 1)
	f.same(o.instance)
	f.stop()
	if f.status.resyncs != 0 || f.Status().PassedOver != 0 {
		t.Errorf("it started anew: %+v", f.Status())
	}
	if rows, _, err := own.index.MirroredCount(t.Context()); err != nil || rows != 21 {
		t.Errorf("%d items are the source's, %v", rows, err)
	}
	if _, err := os.Stat(f.dumpName()); err == nil {
		t.Error("the dump was downloaded")
	}
}

// TestConvertedWithoutLog: without changes, there is no place to go on from.
func TestConvertedWithoutLog(t *testing.T) {
	t.Parallel()
	o := newOriginal(t)
	database := filepath.Join(t.TempDir(), "index.db")
	o.dump(false)
	if err := os.WriteFile(database, o.dumped, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := convert.InPlace(t.Context(), database, convert.Options{Mirrored: true, Settings: ConvertedSettings}); err != nil {
		t.Fatal(err)
	}
	own := openInstance(t, database)
	if place, err := readPlace(t.Context(), own.index); err != nil || !place.isZero() {
		t.Errorf("%+v, %v", place, err)
	}
}

// TestAdmitItem: items must be as they were signed where a dump as a whole tells nothing,
// and have a signature where it may have been damaged on its way.
func TestAdmitItem(t *testing.T) {
	t.Parallel()
	signed := string(testInfo(1, 1, 1).Text)
	before, rest, _ := strings.Cut(signed, "Signature: ")
	_, after, _ := strings.Cut(rest, "\n")
	unsigned, bad := before+after, strings.Replace(signed, "Version: 1", "Version: 2", 1)
	for _, test := range []struct {
		dump                  dump
		signed, unsigned, bad bool
	}{
		{dump{}, true, false, false},
		{dump{sum: "1"}, true, false, false},
		{dump{verified: true}, true, true, false},
		{dump{verified: true, sum: "1"}, true, true, true},
	} {
		for text, want := range map[string]bool{signed: test.signed, unsigned: test.unsigned, bad: test.bad} {
			if _, err := admitItem(original.Item{Text: []byte(text)}, &test.dump); (err == nil) != want {
				t.Errorf("verified %v, sum %q: %v of\n%s", test.dump.verified, test.dump.sum, err, text)
			}
		}
	}
}
