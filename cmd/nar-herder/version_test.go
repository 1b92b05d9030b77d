package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strings"
	"testing"

	"nar-herder/storage/index"
)

func TestReadBuild(t *testing.T) {
	t.Parallel()
	const commit, unsubstituted = "0123456789abcdef0123456789abcdef01234567", "$Format:%H %ct$\n"
	checkout := func(modified string) *debug.BuildInfo {
		return &debug.BuildInfo{Main: debug.Module{Version: "(devel)"}, Settings: []debug.BuildSetting{
			{Key: "vcs.revision", Value: commit}, {Key: "vcs.time", Value: "2026-11-27T23:30:00Z"}, {Key: "vcs.modified", Value: modified},
		}}
	}
	module := func(version string) *debug.BuildInfo {
		return &debug.BuildInfo{Main: debug.Module{Version: version}}
	}
	for _, test := range []struct {
		name              string
		info              *debug.BuildInfo
		archived          string
		version, describe string // the second up to the version of Go
	}{
		{"nothing known", nil, unsubstituted, release, release + " (unknown commit; "},
		{"no checkout", module("(devel)"), unsubstituted, release, release + " (unknown commit; "},
		{"checkout", checkout("false"), unsubstituted, release + "+0123456789ab", release + " (commit 0123456789ab of 2026-11-27; "},
		{"modified checkout", checkout("true"), unsubstituted, release + "+0123456789ab.modified", release + " (commit 0123456789ab of 2026-11-27, modified; "},
		{"archive", module("(devel)"), commit + " 1795822200\n", release + "+0123456789ab", release + " (commit 0123456789ab of 2026-11-27; "},
		{"archive in another checkout", checkout("true"), "fedcba9876543210 1795822200\n", release + "+fedcba987654", release + " (commit fedcba987654 of 2026-11-27; "},
		{"tagged module", module("v1.2.3"), unsubstituted, "1.2.3", "1.2.3 (unknown commit; "},
		{"module without a tag", module("v0.0.0-20261127233000-0123456789ab"), unsubstituted, release + "+0123456789ab", release + " (commit 0123456789ab of 2026-11-27; "},
		{"module after a tag", module("v0.0.2-0.20261127233000-0123456789ab+dirty"), unsubstituted, release + "+0123456789ab.modified", release + " (commit 0123456789ab of 2026-11-27, modified; "},
		{"short commit", nil, "abc x", release + "+abc", release + " (commit abc; "},
	} {
		b := readBuild(test.info, test.archived)
		if got := b.version(); got != test.version {
			t.Errorf("%s: version %q, want %q", test.name, got, test.version)
		}
		want := test.describe + fmt.Sprintf("%s %s/%s; schema %d)", runtime.Version(), runtime.GOOS, runtime.GOARCH, index.SchemaVersion())
		if got := b.describe(); got != want {
			t.Errorf("%s: %q, want %q", test.name, got, want)
		}
	}
}

// TestVersionOfCheckout: a program that is built in a clone shows its commit.
func TestVersionOfCheckout(t *testing.T) {
	t.Parallel()
	git := required(t, "git")
	// Go doesn't read the .git file of a worktree, and a source archive has neither.
	if info, err := os.Stat(filepath.Join(root, ".git")); err != nil || !info.IsDir() {
		t.Skip("this is not a clone")
	}
	out, err := exec.Command(git, "-C", root, "log", "-1", "--format=%H").Output()
	if err != nil {
		t.Fatal(err)
	}
	commit := strings.TrimSpace(string(out))
	for _, arg := range []string{"--version", "version"} {
		r := command(arg).run(t)
		if want := fmt.Sprintf("nar-herder %s (commit %s of 20", release, commit[:12]); r.status != 0 || !strings.HasPrefix(r.out, want) || !strings.Contains(r.out, fmt.Sprintf("schema %d)\n", index.SchemaVersion())) {
			t.Errorf("%s: %+v, want %s", arg, r, want)
		}
	}
	attributes, err := exec.Command(git, "-C", root, "check-attr", "export-subst", "cmd/nar-herder/revision.txt").Output()
	if err != nil || !strings.HasSuffix(string(attributes), ": set\n") {
		t.Errorf("'git archive' doesn't replace revision.txt: %s, %v", attributes, err)
	}
}
