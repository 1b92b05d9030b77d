package main

import (
	"flag"
	"path/filepath"
	"strings"
	"testing"

	"github.com/alecthomas/kong"
)

var update = flag.Bool("update", false, "write the files that are generated from the command line")

// commandModel is the parser's model of the command line.
func commandModel(t *testing.T) *kong.Application {
	t.Helper()
	parser, err := newParser(t.Context(), subcommands, new(streams), new(settings), nil)
	if err != nil {
		t.Fatal(err)
	}
	return parser.Model
}

// generatedFiles are made from the command line.
var generatedFiles = map[string]func(*kong.Application) string{
	"docs/options.md":                     optionsDocument,
	"contrib/man/nar-herder.1":            manual,
	"contrib/completions/nar-herder.bash": bashCompletion,
	"contrib/completions/_nar-herder":     zshCompletion,
	"contrib/completions/nar-herder.fish": fishCompletion,

	"contrib/guix/nar-herder-go/configuration.scm": guixRecord,
}

// TestOptionsDocument: docs/options.md, the manual page, the completions and the record for Guix
// match the command line. With -update, it writes them.
func TestOptionsDocument(t *testing.T) {
	t.Parallel()
	for file, generate := range generatedFiles {
		want := generate(commandModel(t))
		if *update {
			write(t, filepath.Join(root, file), want)
		}
		if read(t, root, file) != want {
			t.Errorf("%s is out of date: run 'go test ./cmd/nar-herder -run TestOptionsDocument -update'", file)
		}
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
| 1 | findings or failure: some of the work failed, was refused or was interrupted; the mirror is behind, the server isn't ready |
| 2 | unknown: ` + "`check`, `verify`, `health`, `mirror-status`, `plan-removal` or `copy-storage`" + ` could not determine its answer |
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
			if i == 0 || groupOrder(option) != groupOrder(command.Flags[i-1]) {
				b.WriteString("\n| " + strings.TrimSuffix(option.Group.Title, ":") + " | variable | |\n|---|---|---|\n")
			}
			all |= unitsOf(option.Target.Type())
			set := "command line only"
			if isSettable(option) {
				set = code(variable(option.Name))
			}
			b.WriteString("| " + code(optionTerm(option)) + " | " + set + " | " + cell(option.Help) + " |\n")
		}
		page := helpPages[command.Name]
		b.WriteString("\nExamples:\n\n")
		for _, example := range page.examples {
			b.WriteString("    nar-herder " + example + "\n")
		}
		var also []string
		for _, name := range page.commands {
			also = append(also, "["+code(name)+"](#"+name+")")
		}
		for _, name := range page.pages {
			also = append(also, "["+name+"]("+name+".md)")
		}
		b.WriteString("\nSee also: " + strings.Join(also, ", ") + ".\n")
	}
	var text strings.Builder
	_ = printUnits(&text, all) // into memory
	b.WriteString("\n## Units\n\n```text\n" + strings.TrimPrefix(text.String(), "\nUnits:\n") + "```\n")
	return b.String()
}

// optionTerm returns an option with its value.
func optionTerm(option *kong.Flag) string {
	name := "--" + option.Name
	switch {
	case option.Tag.Negatable != "":
		name = "--[no-]" + option.Name
	case !option.IsBool():
		name += "=" + option.FormatPlaceHolder()
	case option.PlaceHolder != "":
		name += "[=" + option.PlaceHolder + "]"
	}
	return name
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
