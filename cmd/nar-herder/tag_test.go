package main

import (
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestTagAndList(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	database := "--database=" + p.database
	p.imports(t, filepath.Join(testdata, "published"))
	const unknown = "00000000000000000000000000000001"
	list := func(args ...string) (names []string) {
		t.Helper()
		for line := range strings.Lines(succeed(t, append([]string{"list", database}, args...)...)) {
			names = append(names, strings.TrimPrefix(strings.TrimSpace(line), "/gnu/store/"))
		}
		return names
	}
	name := func(base string) string { return base[33:] }
	all := list()
	if len(all) != corpusItems || !slices.IsSortedFunc(all, func(a, b string) int { return strings.Compare(name(a), name(b)) }) {
		t.Errorf("not sorted by name: %q", all)
	}

	r := runWith(t, "/gnu/store/"+empty+"\n# a comment\nnonsense\n"+unknown+"\n", "tag", database, "kind=odd", greeting, "-")
	if r.status != 1 || r.out != "tagged 2 items\n" || strings.Count(r.err, "\n") != 2 || !strings.Contains(r.err, "tag line 3 of the list: ") || !strings.Contains(r.err, "tag "+unknown+": not in the index") {
		t.Errorf("tag: %+v", r)
	}
	if got := list("--tag=kind=odd"); !slices.Equal(got, []string{empty, greeting}) {
		t.Errorf("tagged: %q", got)
	}
	if out := succeed(t, "tag", database, "--closure", "kind=odd", greet); out != "tagged 3 items\n" {
		t.Errorf("tag --closure: %s", out)
	}
	if out := succeed(t, "untag", database, "kind=odd", greeting, deepTree); out != "untagged 1 item\n" {
		t.Errorf("untag: %s", out)
	}
	if got := list("--tag=kind=odd"); !slices.Equal(got, []string{empty, greet, libgreet}) {
		t.Errorf("then: %q", got)
	}
	misuse(t, []string{"tag", database, greeting, "kind=odd"}, greeting, "KEY=VALUE")
	misuse(t, []string{"untag", database, "kind=odd", "nonsense"}, `"nonsense"`)

	succeed(t, "pin", database, greet)
	if got := list("--pinned"); !slices.Equal(got, []string{greet}) {
		t.Errorf("--pinned: %q", got)
	}
	if got := list("--larger-than=1M"); !slices.Contains(got, entropy) || slices.Contains(got, greeting) {
		t.Errorf("--larger-than: %q", got)
	}
	if got := list("--since=1d"); len(got) != corpusItems {
		t.Errorf("--since=1d: %q", got)
	}
	if got := list("--since=2999-01-01"); len(got) != 0 {
		t.Errorf("--since: %q", got)
	}
	misuse(t, []string{"list", database, "--since=yesterday"}, "--since", "yesterday", "YYYY-MM-DD")
	if got := list("--unstored"); len(got) != 0 {
		t.Errorf("--unstored: %q", got)
	}
	q := newPlace(t)
	succeed(t, "import", "--database="+q.database, "--narinfos-only", published(greeting))
	if got := q.listed(t, "--unstored"); !slices.Equal(got, []string{greeting}) {
		t.Errorf("--unstored: %q", got)
	}
	if out := succeed(t, "list", database, "--json", "--pinned"); strings.Count(out, "\n") != 1 || !strings.Contains(out, `"kind=odd"`) {
		t.Errorf("--json: %s", out)
	}
}
