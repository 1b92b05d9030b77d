package main

import (
	"fmt"
	"strings"

	"github.com/alecthomas/kong"
)

type configCommand struct {
	Server serverCommand `embed:""`
}

// Help is shown below the options.
func (configCommand) Help() string {
	return `Options come from the command line, environment variables, the file that --config names, or the defaults. The first of these that sets an option wins; lists are not merged. The variable of --storage-limit is NAR_HERDER_STORAGE_LIMIT. A list separates its values with ; (write \; for a semicolon in a value). An empty variable counts as unset. The file is TOML, with option names as keys.

The output has the form of that file, with passwords as xxxxx.`
}

func (c *configCommand) Run(parsed *kong.Context, settings *settings, s *streams) error {
	effect := settings.inEffect(parsed, &c.Server)
	width := 0
	for _, option := range effect.options {
		width = max(width, len(option.flag.Name))
	}
	for _, option := range effect.options {
		name := option.flag.Name
		if option.origin == "" {
			printf(s.out, "# %-*s is not set\n", width, name)
			continue
		}
		text, err := option.toml()
		if err != nil {
			return fmt.Errorf("show --%s: %w", name, err)
		}
		printf(s.out, "%-*s = %s # %s\n", width, name, text, option.origin)
	}
	for _, warning := range effect.warnings {
		printf(s.err, "nar-herder: config: %s\n", warning)
	}
	return nil
}

// argumentsOf returns the options on the command line, as written there.
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
		if !ok && path.Flag.IsBool() {
			value = "true"
		} else if !ok && len(arguments) > 1 {
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
