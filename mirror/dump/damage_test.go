package dump

import (
	"database/sql"
	"errors"
	"path/filepath"
	"testing"

	_ "modernc.org/sqlite"

	"nar-herder/storage/index"
)

// TestDamagedText: no dump has a text that is not the one that was written, and the last
// one stays.
func TestDamagedText(t *testing.T) {
	t.Parallel()
	x := newIndex(t, 30)
	m := newMaker(t, x, filepath.Join(t.TempDir(), "dump.db"))
	g := mustMake(t, m)
	db, err := sql.Open("sqlite", x.Path()+"?_pragma=busy_timeout(60000)")
	must(t, err)
	defer db.Close()
	// The changes no longer have it.
	_, err = db.Exec("DELETE FROM recent_changes WHERE id = 8; UPDATE narinfos SET text = (SELECT text FROM narinfos WHERE id = 9) WHERE id = 8")
	must(t, err)
	if _, err := m.Make(t.Context()); !errors.Is(err, index.ErrDamaged) {
		t.Errorf("%v, want ErrDamaged", err)
	}
	wantSame(t, m.Published(), g)
}
