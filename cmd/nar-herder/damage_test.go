package main

import (
	"database/sql"
	"fmt"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// alter changes a database while other processes may have it open.
func alter(t testing.TB, name string, statements ...string) {
	t.Helper()
	db, err := sql.Open("sqlite", name+"?_pragma=busy_timeout(60000)")
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	for _, statement := range statements {
		if _, err := db.Exec(statement); err != nil {
			t.Fatal(err)
		}
	}
}

// flipDictionary flips a bit in a part of the dictionary that narinfos use.
const flipDictionary = `UPDATE dictionaries SET content = CAST(replace(content, CAST('FileSize' AS BLOB), CAST('FileSizd' AS BLOB)) AS BLOB)`

// flipText changes a byte of an item's compressed narinfo.
func flipText(id int) string {
	return fmt.Sprintf(`UPDATE narinfos SET text = CAST(substr(text, 1, 80) || CASE substr(text, 81, 1) WHEN x'00' THEN x'01' ELSE x'00' END || substr(text, 82) AS BLOB) WHERE id = %d`, id)
}

// TestDamagedIndex damages narinfos in the database of a server: requests get the right
// narinfo or an error, check reports each one, and another instance or an import restores
// it.
func TestDamagedIndex(t *testing.T) {
	t.Parallel()
	p, whole := newPlace(t), newPlace(t)
	p.imports(t, small()...)
	whole.imports(t, small()...)
	alter(t, p.database, flipDictionary, flipText(2), flipText(4))
	s := p.serve(t, "--negative-ttl=1h")
	peer := whole.serve(t)
	ask := func() (damaged []string) {
		t.Helper()
		for _, name := range small() {
			hash := hashOfName(name)
			want := read(t, name)
			switch got := get(t, s.addresses[0], "/"+hash+".narinfo"); {
			case got.StatusCode == http.StatusInternalServerError:
				damaged = append(damaged, hash)
				if listed := get(t, s.addresses[0], "/"+hash+".narinfo/info"); listed.StatusCode != http.StatusInternalServerError {
					t.Errorf("the info of a damaged item: %s", listed.Status)
				}
			case got.StatusCode != http.StatusOK || got.body != want:
				t.Errorf("%s: %s, %q", name, got.Status, got.body)
			}
		}
		return damaged
	}
	damaged := ask()
	if len(damaged) != 2 {
		t.Fatalf("%d narinfos are damaged", len(damaged))
	}
	for _, path := range []string{"/recent-changes?since=2000-01-01+00:00:00", "/recent-changes?after=0"} {
		// All other items are served.
		got := get(t, s.addresses[0], path)
		if got.StatusCode != http.StatusOK || !strings.Contains(got.body, `"addition"`) {
			t.Errorf("%s: %s, %q", path, got.Status, got.body)
		}
		for _, hash := range damaged {
			if strings.Contains(got.body, "StorePath: /gnu/store/"+hash) {
				t.Errorf("%s has the damaged item %s", path, hash)
			}
		}
	}
	until(t, "the health warns", func() bool {
		return strings.Contains(get(t, s.addresses[0], "/health").body, "the database is damaged")
	})
	if got := get(t, s.addresses[0], "/metrics"); !strings.Contains(got.body, "\nnarherder_index_damaged_texts_total ") || strings.Contains(got.body, "\nnarherder_index_damaged_texts_total 0\n") {
		t.Error("the metric is missing or 0")
	}
	if list := runProgram(t, "list", "--database="+p.database); list.status != 1 || !strings.Contains(list.err, "damaged") {
		t.Errorf("list: status %d: %s", list.status, list.err)
	}

	found := p.check(t)
	var notes, hashes []string
	for _, finding := range found.findings {
		notes, hashes = append(notes, finding.Note), append(hashes, finding.Hash)
	}
	if found.status != 1 || len(found.findings) != 3 || !slices.ContainsFunc(notes, func(note string) bool { return strings.HasPrefix(note, "dictionary 1: ") }) {
		t.Errorf("status %d: %q", found.status, notes)
	}
	for _, hash := range damaged {
		if !slices.Contains(hashes, hash) {
			t.Errorf("%s is not among %q", hash, hashes)
		}
	}
	// No instance has the narinfos, so only the dictionary is repaired.
	if left := p.check(t, "--repair"); left.status != 1 || left.totals.Repaired != 1 || left.totals.Remaining != 2 {
		t.Errorf("status %d, %+v", left.status, left.totals)
	}
	// Repaired by an import.
	for _, name := range small() {
		if hashOfName(name) == damaged[0] {
			p.imports(t, name)
		}
	}
	if again := ask(); !slices.Equal(again, damaged[1:]) {
		t.Errorf("after an import: %q", again)
	}
	// Repaired from another instance.
	if mended := p.check(t, "--repair", "--from=http://"+peer.addresses[0]); mended.status != 0 || mended.totals.Repaired != 1 || mended.totals.Repairs["rewritten"] != 1 {
		t.Errorf("status %d, %+v: %s", mended.status, mended.totals, mended.out)
	}
	if again := ask(); len(again) > 0 {
		t.Errorf("after the repair: %q", again)
	}
	if now := p.check(t); now.status != 0 || len(now.findings) > 0 {
		t.Errorf("status %d: %s", now.status, now.out)
	}
	s.stop(t, syscall.SIGTERM)
	peer.stop(t, syscall.SIGTERM)
}

// hashOfName returns the path hash in the name of a published narinfo.
func hashOfName(name string) string { return filepath.Base(name)[:32] }
