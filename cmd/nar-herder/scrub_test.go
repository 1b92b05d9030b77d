package main

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// TestScrubServed damages nars of a running server. It repairs them from another instance, and
// hides what no instance has until it is imported again.
func TestScrubServed(t *testing.T) {
	t.Parallel()
	damaged := []string{greeting, libgreet, emptyFile, greet}
	other, p := newPlace(t), newPlace(t)
	other.imports(t, small()...)
	p.imports(t, small()...)
	p.damage(t)
	from := "--repair-from=http://" + other.serve(t).addresses[0]
	s := p.serve(t, "--scrub-interval=1s", from)
	until(t, "all is repaired", func() bool {
		return strings.Contains(get(t, s.addresses[0], "/metrics").body, "\nnarherder_scrub_repaired_total 4\n")
	})
	for _, base := range damaged {
		if got := get(t, s.addresses[0], "/nar/lzip/"+base); got.StatusCode != 200 || got.body != read(t, testdata, "published/nar/lzip", base) {
			t.Errorf("%s: %s", base, got.Status)
		}
		if lines := strings.Count(s.err.String(), "file=nar/lzip/"+base+" "); lines != 1 {
			t.Errorf("%d lines on %s in the log: %s", lines, base, s.err.String())
		}
	}
	until(t, "the health has no warning", func() bool { return !strings.Contains(get(t, s.addresses[0], "/health").body, "scrub") })
	p.check(t, "--verify").want(t, 0, "stranger README", "quarantined "+libgreet, "quarantined "+emptyFile, "quarantined "+greet)
	s.stop(t, syscall.SIGTERM)

	if err := flip(p.nar(greet)); err != nil {
		t.Fatal(err)
	}
	s = p.serve(t, "--scrub-interval=1s")
	healthSays(t, s, "the nars of 1 item are lost")
	for _, target := range []string{"/" + narinfoName(greet), "/nar/lzip/" + greet} {
		until(t, target+" is hidden", func() bool { return get(t, s.addresses[0], target).StatusCode == 404 })
	}
	p.imports(t, published(greet))
	until(t, "it is served again", func() bool {
		return get(t, s.addresses[0], "/"+narinfoName(greet)).StatusCode == 200 && get(t, s.addresses[0], "/nar/lzip/"+greet).StatusCode == 200
	})
}

// TestScrubMirror: a mirror repairs its nars from its source, without another option.
func TestScrubMirror(t *testing.T) {
	t.Parallel()
	source, p := newPlace(t), newPlace(t)
	source.imports(t, small()...)
	there := source.serve(t)
	mirror := "--mirror=http://" + there.addresses[0]
	s := p.serve(t, mirror, "--scrub-interval=none")
	until(t, "it has the nars", func() bool {
		names, err := filepath.Glob(filepath.Join(p.storage, "nar/*/*"))
		return err == nil && len(names) >= len(small())
	})
	s.stop(t, syscall.SIGTERM)
	if err := flip(p.nar(greet)); err != nil {
		t.Fatal(err)
	}
	p.serve(t, mirror, "--scrub-interval=1s")
	until(t, "it is repaired", func() bool {
		content, err := os.ReadFile(p.nar(greet))
		return err == nil && string(content) == read(t, testdata, "published/nar/lzip", greet)
	})
}

// TestScrubOptions: options without effect, and invalid values, are errors.
func TestScrubOptions(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	run := func(more ...string) []string { return p.args("run-server", append([]string{"--port=0"}, more...)...) }
	misuse(t, run("--scrub-interval=none", "--repair-from=http://one.example"), "--repair-from has no effect with --scrub-interval=none")
	misuse(t, []string{"run-server", "--port=0", "--mirror=http://one.example", "--repair-from=http://two.example"}, "--repair-from needs a storage")
	misuse(t, run("--scrub-interval=0s"), "--scrub-interval")
	misuse(t, run("--scrub-interval=3m"), "--scrub-interval")
	misuse(t, run("--repair-from=ftp://one.example"), "--repair-from")
}
