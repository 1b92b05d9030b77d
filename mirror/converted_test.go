package mirror

import (
	"os"
	"path/filepath"
	"testing"

	"nar-herder/mirror/cursor"
	"nar-herder/mirror/original/convert"
)

// TestConverted: the database of an original that was a mirror is converted, and resumes
// without a dump. Items of the source are withdrawn when the source removes them.
func TestConverted(t *testing.T) {
	t.Parallel()
	o := newOriginal(t)
	for n := range 20 {
		o.added(at(100+n), n, 1)
	}
	o.dump(false) // what an up-to-date mirror has
	database := filepath.Join(t.TempDir(), "index.db")
	if err := os.WriteFile(database, o.dumped, 0o644); err != nil {
		t.Fatal(err)
	}
	o.publish(nil)
	done, err := convert.InPlace(t.Context(), database, convert.Options{Mirrored: true, Settings: cursor.ConvertedSettings})
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
	if _, err := os.Stat(f.Downloads + ".dump"); err == nil {
		t.Error("the dump was downloaded")
	}
}

// TestConvertedWithoutLog: without changes, there is no cursor to resume from.
func TestConvertedWithoutLog(t *testing.T) {
	t.Parallel()
	o := newOriginal(t)
	database := filepath.Join(t.TempDir(), "index.db")
	o.dump(false)
	if err := os.WriteFile(database, o.dumped, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := convert.InPlace(t.Context(), database, convert.Options{Mirrored: true, Settings: cursor.ConvertedSettings}); err != nil {
		t.Fatal(err)
	}
	own := openInstance(t, database)
	if place, err := cursor.Read(t.Context(), own.index); err != nil || !place.IsZero() {
		t.Errorf("%+v, %v", place, err)
	}
}
