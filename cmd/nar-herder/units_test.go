package main

import (
	"maps"
	"reflect"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/alecthomas/kong"
)

// optionsOfCommands returns the options of each command.
func optionsOfCommands(t *testing.T) map[string][]*kong.Flag {
	t.Helper()
	options := make(map[string][]*kong.Flag)
	for _, command := range commandModel(t).Leaves(true) {
		options[command.Name] = command.Flags
	}
	return options
}

// decodesOne returns the error of an option's value.
func decodesOne(flag *kong.Flag, value string) error {
	into := reflect.New(flag.Target.Type()).Elem()
	if into.Kind() == reflect.Pointer {
		into.Set(reflect.New(into.Type().Elem()))
	}
	scanner := kong.ScanFromTokens(kong.Token{Type: kong.FlagValueToken, Value: value})
	return flag.Mapper.Decode(&kong.DecodeContext{Value: flag.Value, Scan: scanner}, into)
}

// TestMonths tries m in each option with a duration: only those of the original accept it.
func TestMonths(t *testing.T) {
	t.Parallel()
	original := []string{
		"cached-compression-new-ttl", "cached-compression-ttl", "cached-compression-unused-removal-duration",
		"negative-ttl", "new-ttl", "ttl",
	}
	accepting, tried := make(map[string]bool), 0
	for command, flags := range optionsOfCommands(t) {
		for _, flag := range flags {
			hasDurations := strings.Contains(flag.PlaceHolder+flag.Help, "DURATION")
			if got := unitsOf(flag.Target.Type())&durations != 0; got != hasDurations {
				t.Errorf("%s --%s: has durations: %v; its help says %v", command, flag.Name, got, hasDurations)
			}
			if !hasDurations {
				continue
			}
			tried++
			before := ""
			switch {
			case strings.HasPrefix(flag.PlaceHolder, "TYPE="):
				before = "zstd="
			case strings.HasPrefix(flag.PlaceHolder, "CONDITION"):
				before = "unused-for="
			}
			for _, value := range []string{"5s", "5min", "5h", "5d", "5w", "5mo"} {
				if err := decodesOne(flag, before+value); err != nil {
					t.Errorf("%s --%s=%s: %v", command, flag.Name, before+value, err)
				}
			}
			err := decodesOne(flag, before+"5m")
			if err == nil {
				accepting[flag.Name] = true
			} else if !strings.Contains(err.Error(), "5min") || !strings.Contains(err.Error(), "5mo") {
				t.Errorf("%s --%s=%s: %v", command, flag.Name, before+"5m", err)
			}
		}
	}
	if got := slices.Sorted(maps.Keys(accepting)); !slices.Equal(got, original) {
		t.Errorf("m is accepted by %v, want %v", got, original)
	}
	if tried < 20 {
		t.Errorf("%d options tried", tried)
	}
}

// TestHelpOfUnits checks that the help of each command ends with the units of its options.
func TestHelpOfUnits(t *testing.T) {
	t.Parallel()
	for command, flags := range optionsOfCommands(t) {
		text := ""
		for _, flag := range flags {
			if got, want := unitsOf(flag.Target.Type())&sizes != 0, strings.Contains(flag.PlaceHolder, "BYTES"); got != want {
				t.Errorf("%s --%s: is a size: %v; its help says %v", command, flag.Name, got, want)
			}
			text += flag.PlaceHolder + flag.Help
		}
		help := succeed(t, "help", command)
		_, units, _ := strings.Cut(help, "\nUnits:\n")
		for what, want := range map[string]bool{
			"  durations    s, min, h, d, w, mo": strings.Contains(text, "DURATION"),
			"m is a month in --ttl":              command == "run-server" || command == "config",
			"  sizes        bytes":               strings.Contains(text, "BYTES"),
		} {
			if strings.Contains(units, what) != want {
				t.Errorf("%s: %q in its units: %v, want %v: %s", command, what, !want, want, units)
			}
		}
		if strings.Contains(units, "--help") || strings.Contains(help, "Units:") && units == "" {
			t.Errorf("the help of %s does not end with the units: %s", command, help)
		}
		for line := range strings.Lines(units) {
			if len(line) > 80 {
				t.Errorf("too long: %s", line)
			}
		}
	}
}

// TestAmbiguousMonths gives durations with m in each way of setting options.
func TestAmbiguousMonths(t *testing.T) {
	t.Parallel()
	misuse(t, []string{"mirror-status", "--max-lag=10m", "http://127.0.0.1:1"}, "--max-lag", `"10m"`, "10min", "10mo")
	misuse(t, []string{"list", "--since=10m"}, "--since", `"10m"`, "10min", "10mo", "YYYY-MM-DD")
	misuse(t, []string{"plan-removal", "--storage=/nonexistent", "--storage-nar-removal-criteria=unused-for=10m"}, "--storage-nar-removal-criteria", "10min", "10mo")
	file := writeConfig(t, "max-lag = '10m'\nmirror-interval = '10m'\nttl = '5m'\n")
	misuse(t, []string{"mirror-status", "--config=" + file, "http://127.0.0.1:1"}, "--max-lag", "10min", "10mo", "is set by the file "+file)
	for _, args := range [][]string{{"mirror-status", "http://127.0.0.1:1"}, {"list"}, {"run-server", "--storage=/nonexistent"}} {
		r := runIn(t, []string{"NAR_HERDER_MAX_LAG=10m", "NAR_HERDER_SINCE=10m", "NAR_HERDER_MIRROR_INTERVAL=10m"}, args...)
		if r.status != statusUsage || !strings.Contains(r.err, "10min") || !strings.Contains(r.err, "is set by the environment variable NAR_HERDER_") {
			t.Errorf("%v: %+v", args, r)
		}
	}
}

// TestOptionsInEffect: the log of a server begins with the options in effect, and warns of
// months. config prints the same.
func TestOptionsInEffect(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	file := writeConfig(t, "new-ttl = '5m'\nstorage-nar-removal-criteria = ['unused-for=2mo', 'stored-on=http://user:hushhush@x.invalid/']\nnegative-ttl = '5min'\n")
	options := []string{"--config=" + file, "--port=0", "--ttl=1w", "--enable-cached-compression=zstd", "--enable-cached-compression=lzip", "--cached-compression-ttl=zstd=1m",
		"--cached-compression-directory=lzip=" + p.dir + "/lzip", "--database=" + p.dir + "/x.sqlite", "--storage=" + p.storage}
	cmd := within(append([]string{"run-server", "--log-level=INFO"}, options...)...)
	s := serve(t, cmd)
	s.stop(t, syscall.SIGTERM)
	log := s.err.String()
	warnings := []string{
		"--new-ttl=5m is 150 days: write 5mo for months, or 5min for minutes (--new-ttl is set by the file " + file + ")",
		"--cached-compression-ttl=zstd=1m is 30 days: write 1mo for months, or 1min for minutes",
	}
	line := ""
	for text := range strings.Lines(log) {
		if strings.Contains(text, "msg=options ") {
			line += text
		}
	}
	for _, wanted := range []string{
		" host=127.0.0.1 ", " ttl=1w ", " new-ttl=5mo ", " negative-ttl=5min ", " mirror-interval=60s ", " narinfo-cache-size=64MiB ", " storage-limit=none ",
		" cached-compression-ttl=\"zstd=1mo\" ", " database-dump=" + p.dir + "/x_dump.db ",
		"lzip=" + p.dir + "/lzip; zstd=" + p.dir + "/x_cached/zstd", "unused-for=2mo; stored-on=http://xxxxx@x.invalid/",
	} {
		if !strings.Contains(line, wanted) {
			t.Errorf("%q is not in %s", wanted, line)
		}
	}
	if strings.Count(line, "\n") != 1 || strings.Contains(line, "pid-file") || strings.Contains(log, "hushhush") {
		t.Errorf("options: %s", log)
	}
	r := runProgram(t, append([]string{"config"}, options...)...)
	for _, warning := range warnings {
		if strings.Count(log, warning) != 1 || strings.Count(r.err, warning) != 1 {
			t.Errorf("%q is not in %s, or %s", warning, log, r.err)
		}
	}
	shown := shownConfig(t, nil, "--database="+p.dir+"/x.sqlite", "--enable-cached-compression=zstd", "--enable-cached-compression=lzip", "--cached-compression-directory=lzip=/lzip")
	for name, want := range map[string][2]string{
		"database-dump":                {`"` + p.dir + `/x_dump.db"`, "default"},
		"cached-compression-directory": {`["lzip=/lzip", "zstd=` + p.dir + `/x_cached/zstd"]`, "command line, default"},
		"ttl":                          {},
	} {
		if shown[name] != want {
			t.Errorf("%s: %q, want %q", name, shown[name], want)
		}
	}
	shown = shownConfig(t, nil, "--enable-cached-compression=zstd")
	if got, want := shown["cached-compression-directory"], [2]string{`["zstd=/var/cache/nar-herder/nar/zstd"]`, "default"}; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	if got, want := shown["database-dump"], [2]string{`"/var/lib/nar-herder/nar_herder_dump.db"`, "default"}; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}
