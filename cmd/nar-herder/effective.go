package main

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/BurntSushi/toml"
	"github.com/alecthomas/kong"

	"nar-herder/internal/redact"
	"nar-herder/narinfo"
)

// option is an option with its effective value, without secrets.
type option struct {
	flag  *kong.Flag
	given // without an origin if the option is not set
}

// inEffect are the effective options of a server, with warnings about them.
type inEffect struct {
	options  []option
	warnings []string
}

// inEffect returns the effective options of a server.
func (s *settings) inEffect(parsed *kong.Context, server *serverCommand) (effect inEffect) {
	all := argumentsOf(parsed)
	maps.Copy(all, s.found)
	effect.warnings = unknownVariables()
	for _, flag := range parsed.Selected().Flags {
		if flag.Tag.Has(argumentsOnly) {
			continue
		}
		set, ok := all[flag.Name]
		switch {
		case ok && isSwitch(flag):
			set.values = []string{strconv.FormatBool(flag.Target.Bool())}
		case flag.Name == "database-dump" && server.DatabaseDump == "":
			set = given{values: []string{server.path(server.Database)}, origin: "default"}
		case !ok && flag.HasDefault:
			set = given{values: []string{flag.Default}, origin: "default"}
		}
		if flag.Name == "cached-compression-directory" {
			if others := server.defaultCacheDirectories(); others != nil {
				set.values = append(slices.Clip(set.values), others...)
				set.origin = strings.TrimPrefix(set.origin+", default", ", ")
			}
		}
		set.values = slices.Clone(set.values)
		for i, value := range set.values {
			if unitsOf(flag.Target.Type())&months != 0 && strings.HasSuffix(value, "m") {
				effect.warnings = append(effect.warnings, s.explain(monthWarning(flag.Name, value)))
				value += "o"
			}
			set.values[i] = redact.Text(value)
		}
		effect.options = append(effect.options, option{flag, set})
	}
	return effect
}

// monthWarning returns the warning about a DURATION or TYPE=DURATION with m.
func monthWarning(name, value string) string {
	duration := value[strings.LastIndex(value, "=")+1:]
	length, err := narinfo.ParseGuixDuration(duration)
	if err != nil {
		return fmt.Sprintf("--%s=%s: %v", name, value, err)
	}
	number := strings.TrimSuffix(duration, "m")
	return fmt.Sprintf("--%s=%s is %s: write %smo for months, or %smin for minutes", name, value, countOf(int(length/(24*time.Hour)), "day"), number, number)
}

// log logs all options that are set, in one line.
func (e inEffect) log(log *slog.Logger) {
	var all []slog.Attr
	for _, option := range e.options {
		if option.origin != "" {
			all = append(all, slog.String(option.flag.Name, strings.Join(option.values, "; ")))
		}
	}
	log.LogAttrs(context.Background(), slog.LevelInfo, "options", all...)
}

// isSwitch reports whether the option is true or false.
func isSwitch(flag *kong.Flag) bool { return flag.Target.Kind() == reflect.Bool }

// toml returns the value in TOML.
func (o option) toml() (string, error) {
	var value any = append([]string{}, o.values...) // nil can't be encoded
	switch {
	case isSwitch(o.flag):
		value = o.flag.Target.Bool()
	case !o.flag.IsSlice():
		value = o.values[0]
	}
	encoded, err := toml.Marshal(map[string]any{"x": value})
	return strings.TrimSpace(strings.TrimPrefix(string(encoded), "x = ")), err
}

// defaultCacheDirectories returns TYPE=DIR for each type that no option names a directory for.
func (c *serverCommand) defaultCacheDirectories() (directories []string) {
	for _, enabled := range c.EnableCachedCompression {
		if !slices.ContainsFunc(c.CachedCompressionDirectory, func(named typed[textValue, *textValue]) bool { return named.kind == enabled.Name }) {
			directories = append(directories, enabled.Name+"="+filepath.Join(cacheDirectory(c.Database), enabled.Name))
		}
	}
	return directories
}
