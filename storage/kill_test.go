package storage_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"nar-herder/internal/rounds"
	"nar-herder/storage"
	"nar-herder/storage/check"
	"nar-herder/storage/importer"
)

// many makes items with long nars.
func many(count int, change func(*fake)) []fake {
	items := make([]fake, count)
	for n := range items {
		items[n] = fake{n: n, content: strings.Repeat(fmt.Sprintf("nar of item %d\n", n), 1+n%50)}
		if change != nil {
			change(&items[n])
		}
	}
	return items
}

// kill kills a process at some moment.
func kill(t *testing.T, h *helper, after time.Duration) {
	t.Helper()
	timer := time.AfterFunc(after, func() { _ = h.Process.Kill() })
	defer timer.Stop()
	if _, err := h.out.ReadString(0); err == nil {
		t.Error("the helper printed something")
	}
	_ = h.Wait()
}

// wantAfterKill asserts that only the allowed leftovers of a killed process exist.
func wantAfterKill(t *testing.T, s *storage.Storage) {
	t.Helper()
	for _, finding := range findings(t, s) {
		switch kind, _, _ := strings.Cut(finding, " "); kind {
		case "stranger", "unrecorded", "temporary":
		default:
			t.Errorf("check finds %q", finding)
		}
	}
}

// TestKillMoving kills imports that move nars. No nar may be lost.
func TestKillMoving(t *testing.T) {
	t.Parallel()
	items := many(70, nil)
	random := rand.New(rand.NewPCG(1, 1))
	for round := range rounds.Of(4) {
		p := newPlace(t)
		source := laid(t, items...)
		h := startHelper(t, p, "move", source)
		kill(t, h, time.Duration(random.Int64N(int64(80*time.Millisecond))))
		s := p.openTest(t)
		wantAfterKill(t, s)
		for _, f := range items {
			if !has(filepath.Join(source, f.name()), f.content) && !has(filepath.Join(p.store, f.name()), f.content) {
				t.Errorf("round %d: %s is lost", round, f.name())
			}
		}
		if err := importStrictly(s, []string{source}, importer.Options{}); err != nil {
			t.Errorf("round %d: import again: %v", round, err)
		}
		for _, f := range items {
			wantServed(t, s, f)
		}
		for _, finding := range findings(t, s) {
			if finding != "temporary" {
				t.Errorf("round %d: after importing again, check finds %q", round, finding)
			}
		}
	}
}

// TestKillChurn repeatedly kills a process that adds, replaces and removes items in one
// storage.
func TestKillChurn(t *testing.T) {
	t.Parallel()
	first := many(25, nil)
	updated := many(25, func(f *fake) { f.content, f.note = "shorter "+fmt.Sprint(f.n), "updated" })
	rebuilt := many(25, func(f *fake) { f.content, f.other = f.content+"rebuilt", true })
	both := many(25, func(f *fake) { f.note, f.extra = "both", []fake{{kind: "zstd", content: "zstd"}} })
	sources := []string{laid(t, first...), laid(t, updated...), laid(t, rebuilt...), laid(t, both...)}
	p := newPlace(t)
	random := rand.New(rand.NewPCG(2, 2))
	for range rounds.Of(5) {
		h := startHelper(t, p, "churn", sources...)
		kill(t, h, time.Duration(random.Int64N(int64(250*time.Millisecond))))
		s, closeAll, err := p.open(nil)
		if err != nil {
			t.Fatal(err)
		}
		wantAfterKill(t, s)
		if err := closeAll(); err != nil {
			t.Error(err)
		}
	}
	s := p.openTest(t)
	if err := importStrictly(s, sources[2:3], importer.Options{Keep: true, Replace: true}); err != nil {
		t.Error(err)
	}
	for _, f := range rebuilt {
		wantServed(t, s, f)
	}
	for _, finding := range findings(t, s) {
		if kind, _, _ := strings.Cut(finding, " "); kind != "temporary" && kind != "stranger" {
			t.Errorf("at the end check finds %q", finding)
		}
	}
	// The leftovers can be removed by the findings of the check.
	for finding, err := range check.New(s).Compare(t.Context(), nil) {
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Remove(filepath.Join(p.store, finding.Name)); err != nil {
			t.Error(err)
		}
	}
	wantFindings(t, s)
	for _, f := range rebuilt {
		wantServed(t, s, f)
	}
}
