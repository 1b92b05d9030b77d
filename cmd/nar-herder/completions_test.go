package main

import (
	"fmt"
	"maps"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/alecthomas/kong"
)

const completionHead = `# Completion of nar-herder's commands, options and values. Generated from the command line by
# 'go test ./cmd/nar-herder -run TestOptionsDocument -update': don't edit this file.
`

// takesFiles reports whether a shell completes a value with the names of files.
func takesFiles(placeholder string) bool {
	return strings.Contains(placeholder, "FILE") || strings.Contains(placeholder, "DIR")
}

// fixedValues returns the values of an option that has only a few.
func fixedValues(option *kong.Flag) []string {
	if option.PlaceHolder == "LEVEL" {
		return slices.Sorted(maps.Keys(levels))
	}
	if option.Enum == "" {
		return nil
	}
	return strings.Split(option.Enum, ",")
}

// optionNames returns the ways to write an option without its value.
func optionNames(option *kong.Flag) []string {
	names := []string{"--" + option.Name}
	if option.Tag.Negatable != "" {
		names = append(names, "--no-"+option.Name)
	}
	return names
}

// summary returns the first sentence of a help text, without the default.
func summary(text string) string {
	text, _, _ = strings.Cut(strings.TrimSpace(text), ". ")
	text, _, _ = strings.Cut(text, " (default")
	return strings.TrimSuffix(text, ".")
}

// allFlags returns the options of a command, and those of all.
func allFlags(model *kong.Application, command *kong.Node) []*kong.Flag {
	return append(slices.Clone(command.Flags), model.Flags...)
}

// shellQuote quotes a word for bash and zsh.
func shellQuote(text string) string { return "'" + strings.ReplaceAll(text, "'", `'\''`) + "'" }

func bashCompletion(model *kong.Application) string {
	var names, files []string
	values := make(map[string]string) // by option
	var cases strings.Builder
	for _, command := range model.Children {
		names = append(names, command.Name)
		var options []string
		for _, option := range allFlags(model, command) {
			for _, name := range optionNames(option) {
				if option.IsBool() {
					options = append(options, name)
					continue
				}
				options = append(options, name+"=")
				if fixed := fixedValues(option); fixed != nil {
					values[name] = strings.Join(fixed, " ")
				} else if takesFiles(option.FormatPlaceHolder()) {
					files = append(files, name)
				} else {
					values[name] = ""
				}
			}
		}
		fmt.Fprintf(&cases, "\t%s) words='%s' ;;\n", command.Name, strings.Join(options, " "))
	}
	slices.Sort(files)
	var known strings.Builder
	for _, name := range slices.Sorted(maps.Keys(values)) {
		if values[name] != "" {
			fmt.Fprintf(&known, "\t%s) words='%s' ;;\n", name, values[name])
			delete(values, name)
		}
	}
	return completionHead + `_nar_herder() {
	local current=${COMP_WORDS[COMP_CWORD]} previous=${COMP_WORDS[COMP_CWORD-1]} option='' words=''
	COMPREPLY=()
	# An equals sign is a word of its own, and so is the value behind it.
	if [[ $current == = ]]; then
		option=$previous current=''
	elif [[ $previous == = ]]; then
		option=${COMP_WORDS[COMP_CWORD-2]}
	elif [[ $previous == --* && $current != -* ]]; then
		option=$previous
	fi
	case $option in
` + known.String() + `	` + strings.Join(slices.Sorted(maps.Keys(values)), "|") + `) return ;;
	` + strings.Join(slices.Compact(files), "|") + `|[!-]*)
		compopt -o filenames 2>/dev/null
		mapfile -t COMPREPLY < <(compgen -f -- "$current")
		return ;;
	*)
		if ((COMP_CWORD == 1)); then
			words='` + strings.Join(append(names, "--help", "--version"), " ") + `'
		elif [[ ${COMP_WORDS[1]} == help ]]; then
			words='` + strings.Join(names, " ") + `'
		elif [[ $current != -* ]]; then
			compopt -o filenames 2>/dev/null
			mapfile -t COMPREPLY < <(compgen -f -- "$current")
			return
		else
			case ${COMP_WORDS[1]} in
` + indent(cases.String(), "\t\t") + `			esac
		fi ;;
	esac
	mapfile -t COMPREPLY < <(compgen -W "$words" -- "$current")
	if [[ ${#COMPREPLY[@]} -eq 1 && ${COMPREPLY[0]} == *= ]]; then
		compopt -o nospace 2>/dev/null
	fi
}
complete -F _nar_herder nar-herder
`
}

// indent puts a prefix before each line.
func indent(text, prefix string) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		b.WriteString(prefix + line)
	}
	return b.String()
}

func zshCompletion(model *kong.Application) string {
	// In the specification of an option, brackets and colons end a part.
	escape := strings.NewReplacer(`\`, `\\`, "[", `\[`, "]", `\]`, ":", `\:`).Replace
	specification := func(option *kong.Flag) (lines string) {
		for _, name := range optionNames(option) {
			repeated := ""
			if option.IsSlice() {
				repeated = "*"
			}
			text := repeated + name
			if !option.IsBool() {
				text += "="
			}
			text += "[" + escape(summary(option.Help)) + "]"
			if !option.IsBool() {
				text += ":" + escape(option.FormatPlaceHolder()) + ":"
				if fixed := fixedValues(option); fixed != nil {
					text += "(" + strings.Join(fixed, " ") + ")"
				} else if takesFiles(option.FormatPlaceHolder()) {
					text += "_files"
				}
			}
			lines += " \\\n\t\t\t" + shellQuote(text)
		}
		return lines
	}
	var commands, cases strings.Builder
	for _, command := range model.Children {
		commands.WriteString("\t\t" + shellQuote(command.Name+":"+summary(command.Help)) + "\n")
		cases.WriteString("\t" + command.Name + ")\n\t\t_arguments")
		for _, option := range allFlags(model, command) {
			cases.WriteString(specification(option))
		}
		switch {
		case command.Name == "help":
			cases.WriteString(" \\\n\t\t\t'1:command:{_describe command commands}'")
		case len(command.Positional) > 0:
			cases.WriteString(" \\\n\t\t\t" + shellQuote("*:"+command.Positional[len(command.Positional)-1].Name+":_files"))
		}
		cases.WriteString(" ;;\n")
	}
	return "#compdef nar-herder\n" + completionHead + `_nar_herder() {
	local curcontext="$curcontext" state line
	local -a commands=(
` + commands.String() + `	)
	_arguments -C '(- *)--help[Show the help]' '(- *)--version[Show the version]' '1: :->command' '*:: :->arguments'
	case $state in
	command) _describe command commands ;;
	arguments)
		case $words[1] in
` + indent(cases.String(), "\t") + `		esac ;;
	esac
}
_nar_herder "$@"
`
}

func fishCompletion(model *kong.Application) string {
	quote := func(text string) string { return "'" + strings.NewReplacer(`\`, `\\`, "'", `\'`).Replace(text) + "'" }
	var b strings.Builder
	b.WriteString(completionHead + "complete -c nar-herder -f\n")
	var names []string
	for _, command := range model.Children {
		names = append(names, command.Name)
		fmt.Fprintf(&b, "complete -c nar-herder -n __fish_use_subcommand -a %s -d %s\n", command.Name, quote(summary(command.Help)))
	}
	write := func(condition string, option *kong.Flag) {
		for _, name := range optionNames(option) {
			fmt.Fprintf(&b, "complete -c nar-herder%s -l %s -d %s", condition, name[2:], quote(summary(option.Help)))
			if fixed := fixedValues(option); fixed != nil {
				b.WriteString(" -x -a " + quote(strings.Join(fixed, " ")))
			} else if takesFiles(option.FormatPlaceHolder()) && !option.IsBool() {
				b.WriteString(" -r -F")
			} else if !option.IsBool() {
				b.WriteString(" -x")
			}
			b.WriteString("\n")
		}
	}
	for _, option := range model.Flags {
		write("", option)
	}
	for _, command := range model.Children {
		condition := " -n " + quote("__fish_seen_subcommand_from "+command.Name)
		for _, option := range command.Flags {
			write(condition, option)
		}
		switch {
		case command.Name == "help":
			fmt.Fprintf(&b, "complete -c nar-herder%s -a %s\n", condition, quote(strings.Join(names, " ")))
		case len(command.Positional) > 0:
			fmt.Fprintf(&b, "complete -c nar-herder%s -F\n", condition)
		}
	}
	return b.String()
}

// completions is a command line up to the cursor, and replies that a shell must and must not
// offer.
var completions = []struct {
	line         string
	want, others []string
}{
	{"nar-herder run", []string{"run-server"}, []string{"import"}},
	{"nar-herder run-server --storage-li", []string{"--storage-limit"}, []string{"--storage"}},
	{"nar-herder import --no-ve", []string{"--no-verify"}, []string{"--storage"}},
	{"nar-herder run-server --log-level=", []string{"INFO", "WARN"}, []string{"file.narinfo", "--storage"}},
	{"nar-herder run-server --storage=f", []string{"file.narinfo"}, []string{"import"}},
	{"nar-herder import f", []string{"file.narinfo"}, []string{"import"}},
	{"nar-herder help mirror-s", []string{"mirror-status"}, []string{"--storage"}},
	{"nar-herder run-server --ttl=", nil, []string{"file.narinfo", "--storage"}},
}

// TestCompletions asks the shells what they complete.
func TestCompletions(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write(t, filepath.Join(dir, "file.narinfo"), "")
	file := func(name string) string {
		path, err := filepath.Abs(filepath.Join(root, "contrib/completions", name))
		if err != nil {
			t.Fatal(err)
		}
		return path
	}
	run := func(t *testing.T, name string, args ...string) string {
		t.Helper()
		cmd := exec.Command(required(t, name), args...)
		cmd.Dir, cmd.Env = dir, []string{"HOME=" + dir, "PATH=/usr/bin:/bin", "TERM=dumb"}
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Errorf("%s: %v: %s", name, err, out)
		}
		return string(out)
	}
	check := func(t *testing.T, complete func(line string) string) {
		t.Helper()
		for _, test := range completions {
			var replies []string
			for reply := range strings.Lines(complete(test.line)) {
				reply, _, _ = strings.Cut(strings.TrimSpace(reply), "\t") // fish describes it
				if _, value, ok := strings.Cut(reply, "="); ok && value != "" {
					reply = value // bash completes only the value
				}
				replies = append(replies, strings.TrimSuffix(reply, "="))
			}
			for _, want := range test.want {
				if !slices.Contains(replies, want) {
					t.Errorf("%s: %q lacks %s", test.line, replies, want)
				}
			}
			for _, other := range test.others {
				if slices.Contains(replies, other) {
					t.Errorf("%s: %q has %s", test.line, replies, other)
				}
			}
		}
	}
	t.Run("bash", func(t *testing.T) {
		t.Parallel()
		check(t, func(line string) string {
			// As bash splits the line.
			words := strings.Fields(strings.ReplaceAll(line, "=", " = "))
			for i, word := range words {
				words[i] = shellQuote(word)
			}
			script := `source "$1"; COMP_WORDS=(` + strings.Join(words, " ") + `); COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); _nar_herder; printf '%s\n' "${COMPREPLY[@]}"`
			return run(t, "bash", "-c", script, "bash", file("nar-herder.bash"))
		})
	})
	t.Run("zsh", func(t *testing.T) {
		t.Parallel()
		run(t, "zsh", "-n", file("_nar-herder"))
	})
	t.Run("fish", func(t *testing.T) {
		t.Parallel()
		run(t, "fish", "-n", file("nar-herder.fish"))
		check(t, func(line string) string {
			return run(t, "fish", "--no-config", "-c", "source $argv[1]; complete -C $argv[2]", file("nar-herder.fish"), line)
		})
	})
}
