package main

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/alecthomas/kong"
)

var update = flag.Bool("update", false, "write docs/options.md")

// commandModel is the parser's model of the command line.
func commandModel(t *testing.T) *kong.Application {
	t.Helper()
	parser, err := newParser(t.Context(), subcommands, new(streams), new(settings), nil)
	if err != nil {
		t.Fatal(err)
	}
	return parser.Model
}

// TestOptionsDocument: docs/options.md matches the command line. With -update, it writes
// the page.
func TestOptionsDocument(t *testing.T) {
	t.Parallel()
	want := optionsDocument(commandModel(t))
	name := filepath.Join(root, "docs/options.md")
	if *update {
		if err := os.WriteFile(name, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if read(t, name) != want {
		t.Error("docs/options.md is out of date: run 'go test ./cmd/nar-herder -run TestOptionsDocument -update'")
	}
}

const optionsHead = `# Commands and options

Generated from the command line by ` + "`go test ./cmd/nar-herder -run TestOptionsDocument -update`" + `: don't edit this page.
[install.md](install.md#options-from-the-environment-and-a-file) explains how to set options in the environment or a
file. The [glossary](glossary.md) defines the words.

Every command also has ` + "`--help`, `--version` and `--config=FILE`" + ` (variable ` + "`NAR_HERDER_CONFIG`" + `).

| exit status | meaning |
|---|---|
| 0 | success: everything was done, and nothing is wrong, or ` + "`check --repair`" + ` has repaired it |
| 1 | findings or failure: some of the work failed, was refused or was interrupted; the mirror is behind |
| 2 | unknown: ` + "`check`, `verify`, `mirror-status`, `plan-removal` or `copy-storage`" + ` could not determine its answer |
| 64 | usage: the command line, a variable or the configuration file is wrong. Trying again is useless |
`

func optionsDocument(model *kong.Application) string {
	var b strings.Builder
	b.WriteString(optionsHead)
	var all units
	for _, command := range model.Children {
		b.WriteString("\n## " + command.Name + "\n\n" + markdown(command.Help) + "\n")
		if command.Detail != "" && command.Detail != command.Help {
			b.WriteString("\n" + markdown(command.Detail) + "\n")
		}
		for i, argument := range command.Positional {
			if i == 0 {
				b.WriteString("\n| argument | |\n|---|---|\n")
			}
			b.WriteString("| " + code(strings.TrimSpace(argument.Summary())) + " | " + cell(argument.Help) + " |\n")
		}
		for i, option := range command.Flags {
			if i == 0 {
				b.WriteString("\n| option | variable | |\n|---|---|---|\n")
			}
			all |= unitsOf(option.Target.Type())
			name := "--" + option.Name
			switch {
			case option.Tag.Negatable != "":
				name = "--[no-]" + option.Name
			case !option.IsBool():
				name += "=" + option.FormatPlaceHolder()
			case option.PlaceHolder != "":
				name += "[=" + option.PlaceHolder + "]"
			}
			set := "command line only"
			if isSettable(option) {
				set = code(variable(option.Name))
			}
			b.WriteString("| " + code(name) + " | " + set + " | " + cell(option.Help) + " |\n")
		}
	}
	var text strings.Builder
	_ = printUnits(&text, all) // into memory
	b.WriteString("\n## Units\n\n```text\n" + strings.TrimPrefix(text.String(), "\nUnits:\n") + "```\n")
	return b.String()
}

// code returns a code span for a table.
func code(text string) string { return "`" + strings.ReplaceAll(text, "|", `\|`) + "`" }

// cell returns prose for a table.
func cell(text string) string {
	return strings.ReplaceAll(strings.ReplaceAll(markdown(text), "|", `\|`), "\n", " ")
}

// markdown returns a help text as prose.
func markdown(text string) string {
	return strings.NewReplacer("<", `\<`, "*", `\*`, "_", `\_`).Replace(strings.TrimSpace(text))
}
