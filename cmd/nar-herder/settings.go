package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/BurntSushi/toml"
	"github.com/alecthomas/kong"
)

const (
	// environmentPrefix begins the names of the variables that set options.
	environmentPrefix = "NAR_HERDER_"
	// listSeparator separates the values of a list in such a variable, unless a backslash
	// precedes it. Criteria contain commas, and directories may contain spaces.
	listSeparator = ';'
	// argumentsOnly is the tag of options that only the command line can set. They let a
	// command remove or overwrite more, which a variable meant for another command must not.
	argumentsOnly = "argumentsonly"
)

// settings finds the options that are not on the command line, in the environment or else in
// the file that --config names.
type settings struct {
	fileName string           // "" for none
	file     map[string]given // by option name
	found    map[string]given // the ones in use, by option name
}

// given is the value of an option and where it was set.
type given struct {
	values []string
	isList bool
	origin string // for messages
}

// variable is the name of the environment variable that sets an option.
func variable(option string) string {
	return environmentPrefix + strings.ToUpper(strings.ReplaceAll(option, "-", "_"))
}

// isSettable reports whether the environment and the file can set the option.
func isSettable(flag *kong.Flag) bool {
	return flag.Name != "help" && flag.Name != "version" && !flag.Tag.Has(argumentsOnly)
}

// settableOptions returns the sorted names of the options of all commands that the environment
// and the file can set.
var settableOptions = sync.OnceValue(func() (names []string) {
	parser, err := newParser(context.Background(), subcommands, new(streams), new(settings), nil)
	if err != nil {
		panic(err) // the commands are constants
	}
	for _, node := range append([]*kong.Node{parser.Model.Node}, parser.Model.Children...) {
		for _, flag := range node.Flags {
			if isSettable(flag) {
				names = append(names, flag.Name)
			}
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
})

// BeforeResolve makes the environment and the configuration file sources of options.
func (*globals) BeforeResolve(parsed *kong.Context, s *settings) error {
	s.found = make(map[string]given)
	if s.fileName = os.Getenv(variable("config")); s.fileName != "" {
		s.found["config"] = given{values: []string{s.fileName}, origin: "the environment variable " + variable("config")}
	}
	for _, path := range parsed.Path {
		if path.Flag != nil && path.Flag.Name == "config" {
			s.fileName = parsed.FlagValue(path.Flag).(string)
			delete(s.found, "config")
		}
	}
	if s.fileName != "" {
		if err := s.readFile(); err != nil {
			return err
		}
	}
	parsed.AddResolver(s)
	return nil
}

// readFile reads the TOML file, with option names as keys. It may have options of any command,
// since all commands use the same storage and database.
func (s *settings) readFile() error {
	failed := func(format string, args ...any) error {
		return fmt.Errorf("--config=%s: "+format, append([]any{s.fileName}, args...)...)
	}
	text, err := os.ReadFile(s.fileName)
	if err != nil {
		return failed("%w", errors.Unwrap(err))
	}
	var content map[string]any
	if _, err := toml.Decode(string(text), &content); err != nil {
		return failed("this is not TOML: %w", err)
	}
	known := settableOptions()
	s.file = make(map[string]given, len(content))
	for _, key := range slices.Sorted(maps.Keys(content)) {
		if key == "config" {
			return failed("config: a configuration file can't name another: remove this key")
		}
		if !slices.Contains(known, key) {
			return failed("unknown option %q%s", key, didYouMean(key, known))
		}
		set := given{origin: "the file " + s.fileName}
		list, isList := content[key].([]any)
		if set.isList = isList; !isList {
			list = []any{content[key]}
		}
		for _, value := range list {
			switch value := value.(type) {
			case string:
				set.values = append(set.values, value)
			case int64:
				set.values = append(set.values, strconv.FormatInt(value, 10))
			case bool:
				set.values = append(set.values, strconv.FormatBool(value))
			default:
				return failed("%s: the value must be a string, a number without a fraction, true, false, or a list of these", key)
			}
		}
		s.file[key] = set
	}
	return nil
}

// Resolve implements [kong.Resolver].
func (s *settings) Resolve(_ *kong.Context, _ *kong.Path, flag *kong.Flag) (any, error) {
	if !isSettable(flag) {
		return nil, nil
	}
	set, ok := fromEnvironment(flag)
	if !ok {
		if set, ok = s.file[flag.Name]; !ok {
			return nil, nil
		}
	}
	s.found[flag.Name] = set
	if flag.IsSlice() {
		values := make([]any, len(set.values))
		for i, value := range set.values {
			if err := decodes(flag, value); err != nil {
				return nil, err
			}
			values[i] = value
		}
		return values, nil
	}
	if set.isList {
		return nil, errors.New("it has one value, not a list")
	}
	return set.values[0], nil
}

// Validate implements [kong.Resolver].
func (s *settings) Validate(*kong.Application) error { return nil }

// decodes returns the error of one value of a list. The parser would take the whole list as
// JSON, and say so in its errors.
func decodes(flag *kong.Flag, value string) error {
	into := reflect.New(flag.Target.Type()).Elem()
	scanner := kong.ScanFromTokens(kong.Token{Type: kong.FlagValueToken, Value: value})
	return flag.Mapper.Decode(&kong.DecodeContext{Value: flag.Value, Scan: scanner}, into)
}

// fromEnvironment reads an option's variable. An empty variable counts as unset, since some
// supervisors can't unset one.
func fromEnvironment(flag *kong.Flag) (given, bool) {
	name := variable(flag.Name)
	text := os.Getenv(name)
	if text == "" || isServiceLink(flag.Name, text) {
		return given{}, false
	}
	set := given{values: []string{text}, origin: "the environment variable " + name}
	if flag.IsSlice() {
		set.isList, set.values = true, nil
		for _, value := range kong.SplitEscaped(text, listSeparator) {
			if value = strings.TrimSpace(value); value != "" {
				set.values = append(set.values, value)
			}
		}
	}
	return set, true
}

// isServiceLink reports whether the value of an option's variable comes from Kubernetes,
// which sets NAR_HERDER_PORT=tcp://ADDRESS:PORT for a service named nar-herder.
func isServiceLink(option, value string) bool {
	return (option == "port" || strings.HasSuffix(option, "-port")) && strings.HasPrefix(value, "tcp://")
}

// unknownVariables returns a warning for each variable that has the prefix but sets no option. These
// are not errors, since Kubernetes sets such variables.
func unknownVariables() (warnings []string) {
	for _, entry := range os.Environ() {
		name, value, _ := strings.Cut(entry, "=")
		if !strings.HasPrefix(name, environmentPrefix) {
			continue
		}
		options := settableOptions()
		i := slices.IndexFunc(options, func(option string) bool { return variable(option) == name })
		if i < 0 {
			variables := make([]string, len(options))
			for i, option := range options {
				variables[i] = variable(option)
			}
			warnings = append(warnings, "the environment variable "+name+" sets no option"+didYouMean(name, variables))
		} else if isServiceLink(options[i], value) {
			warnings = append(warnings, "the environment variable "+name+" is ignored: "+value+" is a service link of Kubernetes, not a port")
		}
	}
	return warnings
}

var optionName = regexp.MustCompile(`--[a-z0-9][a-z0-9-]*`)

// explain appends to a message where the options that it names were set, unless that is the
// command line.
func (s *settings) explain(message string) string {
	var origins []string
	for _, match := range optionName.FindAllString(message, -1) {
		if set, ok := s.found[match[2:]]; ok {
			if origin := match + " is set by " + set.origin; !slices.Contains(origins, origin) {
				origins = append(origins, origin)
			}
		}
	}
	if origins == nil {
		return message
	}
	return message + " (" + strings.Join(origins, ", ") + ")"
}

// didYouMean returns the end of a message about an unknown name, with the similar names, or
// "" without any.
func didYouMean(name string, known []string) string {
	var near []string
	for _, candidate := range known {
		if distance(strings.ToLower(name), strings.ToLower(candidate)) <= 2 {
			near = append(near, candidate)
		}
	}
	if near == nil {
		return ""
	}
	return ": did you mean " + strings.Join(near, " or ") + "?"
}

// distance returns the Levenshtein distance.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			replaced := diagonal
			if a[i] != b[j] {
				replaced++
			}
			diagonal = row[j+1]
			row[j+1] = min(replaced, row[j]+1, diagonal+1)
		}
	}
	return row[len(b)]
}
