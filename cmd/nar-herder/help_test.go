package main

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/alecthomas/kong"
)

// TestHelpGroups: each option of each command belongs to a group of the help.
func TestHelpGroups(t *testing.T) {
	t.Parallel()
	model := commandModel(t)
	used := make(map[string]bool)
	for _, node := range append([]*kong.Node{model.Node}, model.Children...) {
		order := 0
		for _, option := range node.Flags {
			position := groupOrder(option)
			if position < 0 {
				t.Errorf("%s: --%s has no group, or one that is not in the list of groups: add the tag group:\"KEY\" to it, or to the struct that is embedded", node.Name, option.Name)
				continue
			}
			used[option.Group.Key] = true
			if position < order {
				t.Errorf("%s: --%s is not sorted by its group", node.Name, option.Name)
			}
			order = position
		}
	}
	for _, group := range groups {
		if !used[group.Key] {
			t.Errorf("no option belongs to the group %s", group.Key)
		}
	}
}

// TestHelpPages: the help on each command shows its options in groups, examples that the
// parser accepts, units, and commands and pages that exist.
func TestHelpPages(t *testing.T) {
	t.Parallel()
	names := make([]string, len(subcommands))
	for i, c := range subcommands {
		names[i] = c.name
	}
	for name := range helpPages {
		if !slices.Contains(names, name) {
			t.Errorf("helpPages: no command is named %s", name)
		}
	}
	for _, name := range names {
		page := helpPages[name]
		if len(page.examples) == 0 || len(page.commands) == 0 || len(page.pages) == 0 {
			t.Errorf("%s lacks examples, commands or pages", name)
		}
		for _, example := range page.examples {
			args := strings.Fields(strings.ReplaceAll(example, "/etc/nar-herder.toml", os.DevNull)) // which is empty TOML
			parser, err := newParser(t.Context(), namedBy(args), new(streams), new(settings), func(int) {})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := parser.Parse(args); err != nil || args[0] != name {
				t.Errorf("%s: example %q: %v", name, example, err)
			}
		}
		for _, other := range page.commands {
			if other == name || !slices.Contains(names, other) {
				t.Errorf("%s: see also %s", name, other)
			}
		}
		for _, other := range page.pages {
			if _, err := os.Stat(filepath.Join(root, "docs", other+".md")); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
	help := succeed(t, "help", "run-server")
	last := 0
	for _, part := range []string{"\nCommon:\n", "\nListening:\n", "\nIndex and storage:\n", "\nClient caching:\n", "\nLimit and removal:\n", "\nCached compressions:\n", "\nMirror and other instances:\n", "\nUpstreams:\n", "\nCache in front of the storage:\n", "\nDumps:\n", "\nKeys and signatures:\n", "\nLogging:\n", "\nExamples:\n  nar-herder run-server --", "\nUnits:\n  durations", "\n  sizes ", "\nSee also:\n  nar-herder "} {
		i := strings.Index(help, part)
		if i < last {
			t.Errorf("%q is missing in the help, or too early", part)
		}
		last = i
	}
	for line := range strings.Lines(help[last:]) {
		if len(line) > 81 {
			t.Errorf("too long: %s", line)
		}
	}
}
