package main

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"nar-herder/storage/index"
)

// TestEviction: above the limit, only nars of the upstreams in the options are evicted, also by
// an instance that named others before, and --upstream-keep removes their items.
func TestEviction(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	dir, texts, targets := generated(t, 20)
	p.imports(t, dir)
	x, err := index.Open(t.Context(), p.database, index.Options{})
	if err != nil {
		t.Fatal(err)
	}
	err = x.Update(t.Context(), func(tx *index.Tx) error {
		for i, target := range targets[:15] {
			url := "https://upstream.example"
			if i >= 10 {
				url = "https://former.example"
			}
			origin, err := tx.Origin(url)
			if err != nil {
				return err
			}
			n, _ := narOf(t, texts[target])
			if err := tx.SetOrigin(n.StorePath.Hash, origin, time.Time{}); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := x.Close(); err != nil {
		t.Fatal(err)
	}
	// stored tells which nars are stored.
	stored := func() string {
		var state strings.Builder
		for _, target := range targets {
			_, name := narOf(t, texts[target])
			if _, err := os.Stat(filepath.Join(p.storage, name)); err == nil {
				state.WriteByte('s')
			} else {
				state.WriteByte('-')
			}
		}
		return state.String()
	}
	all := strings.Repeat("s", 20)
	options := []string{"--log-level=INFO", "--storage-check-interval=1s", "--storage-limit=1B"}
	// An upstream that can't be used any more.
	s := p.serve(t, slices.Concat(options, []string{"--upstream=https://other.example"})...)
	until(t, "it can't evict any", func() bool {
		return strings.Contains(s.err.String(), "no more nars of upstreams can be evicted")
	})
	if got := stored(); got != all {
		t.Errorf("%s are stored", got)
	}
	s.stop(t, syscall.SIGTERM)
	s = p.serve(t, slices.Concat(options, []string{"--upstream=https://user:secret@upstream.example/"})...)
	until(t, "the nars are evicted", func() bool { return stored() == strings.Repeat("-", 10)+strings.Repeat("s", 10) })
	until(t, "it is counted", func() bool { return metric(t, s.addresses[0], "narherder_eviction_nars_total") == "10" })
	for _, want := range []string{"https://former.example", "evicted nars"} {
		if !strings.Contains(s.err.String(), want) {
			t.Errorf("the log lacks %q", want)
		}
	}
	if strings.Contains(s.err.String(), "but no --storage-nar-removal-criteria") {
		t.Error("the log misses criteria")
	}
	if got := get(t, s.addresses[0], targets[0]); got.StatusCode != 200 {
		t.Errorf("the narinfo of an evicted nar: %s", got.Status)
	}
	s.stop(t, syscall.SIGTERM)
	// Without upstreams, as before.
	s = p.serve(t, options...)
	until(t, "the storage is checked", func() bool { return strings.Contains(s.err.String(), "so nothing may be removed") })
	s.stop(t, syscall.SIGTERM)
	// As if they had been added long ago.
	alter(t, p.database, "UPDATE items SET added_at = added_at - 2 * 86400000")
	s = p.serve(t, "--log-level=INFO", "--upstream=https://upstream.example", "--upstream-keep=1d")
	until(t, "the items are removed", func() bool { return len(p.listed(t)) == 10 })
	if !strings.Contains(s.err.String(), "the storage grows until its disk is full") {
		t.Error("the log misses a limit")
	}
}
