package index

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestEraseSetting leaves no trace of a setting's values in the files, and all other
// settings unchanged.
func TestEraseSetting(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "index.db")
	x, err := Open(t.Context(), path, Options{})
	if err != nil {
		t.Fatal(err)
	}
	instance := x.Instance()
	for n := range 10 {
		for _, value := range []string{"a s3cr3t", strings.Repeat("another s3cr3t ", n), strings.Repeat("a long s3cr3t ", 10*n)} {
			if err := x.Update(t.Context(), func(tx *Tx) error { return tx.SetSetting("erased", value) }); err != nil {
				t.Fatal(err)
			}
		}
		if err := x.Update(t.Context(), func(tx *Tx) error { return tx.SetSetting("other", strings.Repeat("x", 100*n)) }); err != nil {
			t.Fatal(err)
		}
	}
	reopen := func() {
		t.Helper()
		if err := x.Close(); err != nil {
			t.Fatal(err)
		}
	}
	reopen()
	if text, err := os.ReadFile(path); err != nil || !strings.Contains(string(text), "s3cr3t") {
		t.Fatalf("there is nothing to erase: %v", err)
	}
	if x, err = Open(t.Context(), path, Options{}); err != nil {
		t.Fatal(err)
	}
	if err := x.EraseSetting(t.Context(), "erased", "good"); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"erased": "good", "other": strings.Repeat("x", 900)} {
		if got, err := x.Setting(t.Context(), name); got != want || err != nil {
			t.Errorf("%s is %q, %v", name, got, err)
		}
	}
	reopen()
	files, err := filepath.Glob(path + "*")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range files {
		if text, err := os.ReadFile(name); err != nil || strings.Contains(string(text), "s3cr3t") {
			t.Errorf("%s still has the value, or can't be read: %v", name, err)
		}
	}
	if x, err = Open(t.Context(), path, Options{}); err != nil {
		t.Fatal(err)
	}
	defer x.Close()
	if x.Instance() != instance {
		t.Error("the id of the instance has changed")
	}
}
