package dump

import (
	"database/sql"
	"errors"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"

	_ "modernc.org/sqlite"

	"nar-herder/internal/testlog"
	"nar-herder/mirror/original"
	"nar-herder/narinfo"
	"nar-herder/storage/index"
)

// TestDamagedText: a dump omits a damaged item and names it; it has the others.
func TestDamagedText(t *testing.T) {
	t.Parallel()
	x := newIndex(t, 30)
	m := newMaker(t, x, filepath.Join(t.TempDir(), "dump.db"))
	log := new(testlog.Buffer)
	m.log = slog.New(slog.NewTextHandler(log, nil))
	db, err := sql.Open("sqlite", x.Path()+"?_pragma=busy_timeout(60000)")
	must(t, err)
	defer db.Close()
	var hash narinfo.PathHash
	for item, err := range x.ItemsAfter(t.Context(), 7) {
		must(t, err)
		hash = item.Hash
		break
	}
	_, err = db.Exec("UPDATE narinfos SET text = (SELECT text FROM narinfos WHERE id = 9) WHERE id = 8")
	must(t, err)
	state := wantSame(t, m.Published(), mustMake(t, m))
	if len(state.texts) != 29 || state.info[original.DamagedKey] != hash.String() {
		t.Errorf("%d items, %v", len(state.texts), state.info)
	}
	if !strings.Contains(log.String(), hash.String()) || len(m.Warnings()) != 1 {
		t.Errorf("%q, %s", m.Warnings(), log)
	}
	if changed, _, err := m.changed(t.Context()); changed || err != nil {
		t.Errorf("without a change: changed is %v, %v", changed, err)
	}
	_, err = db.Exec("UPDATE narinfos SET withdrawn_at = 0 WHERE id = 20")
	must(t, err)
	mustMake(t, m)
	if changed, _, err := m.changed(t.Context()); changed || err != nil {
		t.Errorf("without a change but a wrong time: changed is %v, %v", changed, err)
	}
	_, err = db.Exec("UPDATE narinfos SET withdrawn_at = NULL WHERE id = 20")
	must(t, err)
	must(t, x.Update(t.Context(), func(tx *index.Tx) error {
		_, err := tx.Item(hash)
		var damage *index.Damage
		if !errors.As(err, &damage) {
			return errors.New("it is not damaged")
		}
		for n := range 30 {
			if text := narinfoOf(n).Text; narinfoOf(n).StorePath.Hash == hash {
				_, err = tx.Mend(damage, text)
			}
		}
		return err
	}))
	state = wantSame(t, m.Published(), mustMake(t, m))
	if len(state.texts) != 30 || len(m.Warnings()) != 0 {
		t.Errorf("%d items, %q", len(state.texts), m.Warnings())
	}
}
