package main

import (
	"fmt"
	"maps"
	"strings"

	"github.com/BurntSushi/toml"
	"github.com/alecthomas/kong"

	"nar-herder/internal/redact"
)

type configCommand struct {
	Server serverCommand `embed:""`
}

// Help is shown below the options.
func (configCommand) Help() string {
	return `Options come from the command line, from environment variables, from the file that --config names, or are the defaults, in this order: what is found first counts, and lists are not merged. The variable of --storage-limit is NAR_HERDER_STORAGE_LIMIT; the values of a list have ; between them (\; within one), and an empty variable counts as none. The file is TOML, with the names of the options as its keys.

This prints them in the form of that file, with passwords as xxxxx.`
}

func (*configCommand) Run(parsed *kong.Context, settings *settings, s *streams) error {
	all := argumentsOf(parsed)
	maps.Copy(all, settings.found)
	width := 0
	for _, flag := range parsed.Selected().Flags {
		width = max(width, len(flag.Name))
	}
	for _, flag := range parsed.Selected().Flags {
		if flag.Tag.Has(argumentsOnly) {
			continue
		}
		set, ok := all[flag.Name]
		if !ok && !flag.HasDefault {
			printf(s.out, "# %-*s is not set\n", width, flag.Name)
			continue
		}
		if !ok {
			set = given{values: []string{flag.Default}, origin: "default"}
		}
		text, err := tomlOf(flag, set)
		if err != nil {
			return fmt.Errorf("show --%s: %w", flag.Name, err)
		}
		printf(s.out, "%-*s = %s # %s\n", width, flag.Name, text, set.origin)
	}
	for _, warning := range settings.unknown() {
		printf(s.err, "nar-herder: config: %s\n", warning)
	}
	return nil
}

// tomlOf is what an option is set to in TOML, without secrets.
func tomlOf(flag *kong.Flag, set given) (string, error) {
	values := make([]string, len(set.values))
	for i, value := range set.values {
		values[i] = redact.Text(value)
	}
	var value any = values
	switch {
	case flag.IsBool():
		value = flag.Target.Bool()
	case !flag.IsSlice():
		value = values[0]
	}
	encoded, err := toml.Marshal(map[string]any{"x": value})
	return strings.TrimSpace(strings.TrimPrefix(string(encoded), "x = ")), err
}

// argumentsOf finds the options on the command line, as they are written there.
func argumentsOf(parsed *kong.Context) map[string]given {
	found := make(map[string]given)
	rest := parsed.Args
	for _, path := range parsed.Path {
		if path.Resolved {
			continue
		}
		arguments := rest[:len(rest)-len(path.Remainder())]
		rest = path.Remainder()
		if path.Flag == nil {
			continue
		}
		_, value, ok := strings.Cut(arguments[0], "=")
		if !ok && len(arguments) > 1 {
			value = arguments[1]
		}
		set := found[path.Flag.Name]
		set.origin, set.isList = "command line", path.Flag.IsSlice()
		if !set.isList {
			set.values = nil
		}
		set.values = append(set.values, value)
		found[path.Flag.Name] = set
	}
	return found
}
