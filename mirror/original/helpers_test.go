package original

import (
	"database/sql"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// reader makes the test binary read a database instead of running tests: see
// TestReadOnlyDirectory.
const reader = "NAR_HERDER_TEST_READ"

func TestMain(m *testing.M) {
	if path := os.Getenv(reader); path != "" {
		os.Exit(readAsOther(path))
	}
	os.Exit(m.Run())
}

// execute runs SQL on a database file, on one connection.
func execute(t testing.TB, path string, statements ...string) {
	t.Helper()
	db := openSQL(t, path)
	defer db.Close()
	for _, statement := range statements {
		if _, err := db.Exec(statement); err != nil {
			t.Fatalf("%s: %v", statement, err)
		}
	}
}

func openSQL(t testing.TB, path string) *sql.DB {
	t.Helper()
	db, err := sql.Open("sqlite", path)
	if err != nil {
		t.Fatal(err)
	}
	db.SetMaxOpenConns(1)
	return db
}

// ask runs the program sqlite3, independent of the library used here.
func ask(t *testing.T, path, query string) string {
	t.Helper()
	if _, err := exec.LookPath("sqlite3"); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal(err)
		}
		t.Skip("sqlite3 is not installed")
	}
	out, err := exec.Command("sqlite3", "-readonly", path, query).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v: %s", query, err, out)
	}
	return strings.TrimSpace(string(out))
}

// corpus returns the narinfos of a real Guix.
func corpus(t testing.TB) (texts [][]byte) {
	t.Helper()
	for _, pattern := range []string{"published/*.narinfo", "published-multi/*.narinfo", "cases/ok-*.narinfo"} {
		names, err := filepath.Glob("../../testdata/" + pattern)
		if err != nil || len(names) == 0 {
			t.Fatalf("%s: %d files, %v", pattern, len(names), err)
		}
		for _, name := range names {
			text, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			texts = append(texts, text)
		}
	}
	return texts
}

func open(t testing.TB, path string) *Database {
	t.Helper()
	d, err := Open(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	return d
}

// all reads everything, and returns errors of single rows.
func all(t testing.TB, d *Database) (items []Item, changes []Change, odd []string) {
	t.Helper()
	note := func(err error) {
		var row *RowError
		if !errors.As(err, &row) {
			t.Fatal(err)
		}
		odd = append(odd, fmt.Sprintf("%s %d", row.Table, row.ID))
	}
	for item, err := range d.Items(t.Context(), FromStart) {
		if err != nil {
			note(err)
			continue
		}
		items = append(items, item)
	}
	for change, err := range d.Changes(t.Context()) {
		if err != nil {
			note(err)
			continue
		}
		changes = append(changes, change)
	}
	return items, changes, odd
}
