package main

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"
	"testing"
)

// runIn is runProgram with environment variables.
func runIn(t testing.TB, environment []string, args ...string) result {
	t.Helper()
	if environment == nil {
		return runProgram(t, args...)
	}
	p := command(args...)
	p.Env = append(p.Env, environment...)
	p.start(t)
	status := p.wait(t)
	return result{p.out.String(), p.err.String(), status}
}

// writeConfig writes a configuration file and returns its name.
func writeConfig(t testing.TB, text string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "nar-herder.toml")
	if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return name
}

// shownConfig runs config, and returns the value and the source of each option.
func shownConfig(t testing.TB, environment []string, args ...string) map[string][2]string {
	t.Helper()
	r := runIn(t, environment, append([]string{"config"}, args...)...)
	if r.status != 0 || r.err != "" {
		t.Fatalf("status %d, %s", r.status, r.err)
	}
	shown := make(map[string][2]string)
	for line := range strings.Lines(r.out) {
		if name, ok := strings.CutSuffix(strings.TrimSpace(line), " is not set"); ok {
			shown[strings.TrimSpace(strings.TrimPrefix(name, "# "))] = [2]string{}
			continue
		}
		name, rest, ok := strings.Cut(line, " = ")
		value, origin, ok2 := strings.Cut(rest, " # ")
		if !ok || !ok2 {
			t.Fatalf("line %q", line)
		}
		shown[strings.TrimSpace(name)] = [2]string{value, strings.TrimSpace(origin)}
	}
	return shown
}

func TestConfigPrecedence(t *testing.T) {
	t.Parallel()
	file := writeConfig(t, `# of the farm
host = "10.0.0.1"
port = 81
storage-limit = "3TiB"
storage-nar-removal-criteria = ["unused-for=12mo,unreferenced,no-tag=a=b;c", "stored-on=https://one.example"]
enable-cached-compression = "zstd:19"
x-accel-redirect = true
ttl = "1d"
# of other commands
verify-rate = "50M"
`)
	environment := []string{
		"NAR_HERDER_CONFIG=" + file, "NAR_HERDER_PORT=82", "NAR_HERDER_TTL=2d", "NAR_HERDER_NEW_TTL=", "NAR_HERDER_LOG_LEVEL=INFO",
		`NAR_HERDER_ENABLE_CACHED_COMPRESSION=zstd:3; lzip;`,
		`NAR_HERDER_CACHED_COMPRESSION_DIRECTORY=zstd=/a b\;c;lzip=/d,e`,
	}
	shown := shownConfig(t, environment, "--ttl", "3d", "--mirror-nars=none", "--storage-limit=none")
	variable := func(name string) string { return "the environment variable NAR_HERDER_" + name }
	for name, want := range map[string][2]string{
		"host":                         {`"10.0.0.1"`, "the file " + file},
		"port":                         {`"82"`, variable("PORT")},
		"ttl":                          {`"3d"`, "command line"},
		"new-ttl":                      {},
		"negative-ttl":                 {},
		"log-level":                    {`"INFO"`, variable("LOG_LEVEL")},
		"mirror-nars":                  {`"none"`, "command line"},
		"storage-limit":                {`"none"`, "command line"},
		"storage-hard-limit":           {`"none"`, "default"},
		"x-accel-redirect":             {"true", "the file " + file},
		"storage-nar-removal-criteria": {`["unused-for=12mo,unreferenced,no-tag=a=b;c", "stored-on=https://one.example"]`, "the file " + file},
		"enable-cached-compression":    {`["zstd:3", "lzip"]`, variable("ENABLE_CACHED_COMPRESSION")},
		"cached-compression-directory": {`["zstd=/a b;c", "lzip=/d,e"]`, variable("CACHED_COMPRESSION_DIRECTORY")},
	} {
		if got := shown[name]; got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	// Repeated options on the command line are one list, which replaces those of other
	// sources.
	shown = shownConfig(t, environment, "--enable-cached-compression=gzip", "--enable-cached-compression", "zstd", "--config=")
	if got, want := shown["enable-cached-compression"], ([2]string{`["gzip", "zstd"]`, "command line"}); got != want {
		t.Errorf("%q, want %q", got, want)
	}
	if got := shown["host"][1]; got != "default" { // the file is not read
		t.Errorf("%q", got)
	}
}

// TestConfigIsAFile uses the output of config as a configuration file.
func TestConfigIsAFile(t *testing.T) {
	t.Parallel()
	first := shownConfig(t, []string{"NAR_HERDER_X_ACCEL_REDIRECT=yes", "NAR_HERDER_PID_FILE=/run/a \"b\"\\c\t#d"}, "--storage-nar-removal-criteria=unpinned")
	r := runIn(t, []string{"NAR_HERDER_X_ACCEL_REDIRECT=yes", "NAR_HERDER_PID_FILE=/run/a \"b\"\\c\t#d"}, "config", "--storage-nar-removal-criteria=unpinned")
	second := shownConfig(t, nil, "--config="+writeConfig(t, r.out))
	for name, set := range first {
		if got := second[name][0]; got != set[0] {
			t.Errorf("%s: %s, want %s", name, got, set[0])
		}
	}
}

// TestConfigOfEachOption sets every option of run-server in the environment and in the
// file, with the same effect as on the command line.
func TestConfigOfEachOption(t *testing.T) {
	t.Parallel()
	values := map[string]string{
		"port": "80", "control-port": "0", "storage-nar-removal-criteria": "unpinned", "mirror": "https://x.example", "log-level": "WARN", "log-format": "json",
		"enable-cached-compression": "zstd:1", "cached-compression-directory": "zstd=/x", "cached-compression-directory-max-size": "zstd=5M",
		"cached-compression-unused-removal-duration": "zstd=5d", "cached-compression-ttl": "zstd=5d", "cached-compression-new-ttl": "zstd=5d",
		"repair-from": "https://x.example", "upstream": "https://y.example", "upstream-keep": "7d", "upstream-down": "not-found", "serve-remote-nars": "redirect", "serve-bucket-nars": "redirect", "mirror-nars": "none", "public-metrics": "no", "x-accel-redirect": "true", "storage-read-only": "true", "allow-private-redirects": "true", "tag": "a=b",
		"trusted-proxies": "10.0.0.0/8,unix",
		"storage-limit":   "7M", "storage-hard-limit": "7M", "storage-minimum-free-space": "7M", "storage-cache-size": "7M", "narinfo-cache-size": "7M", "mirror-bandwidth": "7M",
	}
	environment, file, args := []string{}, "", []string{"config"}
	for name := range optionsOf(reflect.TypeFor[serverCommand]()) {
		value, ok := values[name]
		if !ok {
			value = "7" // a number, a file
			if strings.Contains(name, "ttl") || strings.Contains(name, "interval") {
				value = "7d"
			}
		}
		environment = append(environment, variable(name)+"="+value)
		file += name + " = '" + value + "'\n"
		args = append(args, "--"+name+"="+value)
	}
	want := shownConfig(t, nil, args[1:]...)
	for name, set := range shownConfig(t, environment) {
		if set[0] != want[name][0] || set[1] != "the environment variable "+variable(name) {
			t.Errorf("%s: %q, want %q", name, set, want[name])
		}
	}
	name := writeConfig(t, file)
	for option, set := range shownConfig(t, nil, "--config="+name) {
		if set[0] != want[option][0] || set[1] != "the file "+name {
			t.Errorf("%s: %q, want %q", option, set, want[option])
		}
	}
}

// optionsOf collects the names of a command's options.
func optionsOf(command reflect.Type) map[string]bool {
	names := make(map[string]bool)
	for i := range command.NumField() {
		field := command.Field(i)
		switch {
		case field.Anonymous:
			for name := range optionsOf(field.Type) {
				names[name] = true
			}
		case field.Tag.Get("name") != "":
			names[field.Tag.Get("name")] = true
		case field.IsExported():
			name := ""
			for _, letter := range field.Name {
				if letter < 'a' && name != "" {
					name += "-"
				}
				name += strings.ToLower(string(letter))
			}
			names[name] = true
		}
	}
	return names
}

func TestConfigFaults(t *testing.T) {
	t.Parallel()
	for text, wanted := range map[string][]string{
		"storage-limt = 5":                  {`"storage-limt"`, "did you mean storage-limit?"},
		"storage_limit = 5":                 {`"storage_limit"`, "did you mean storage-limit?"},
		"frobnicate = 5":                    {`"frobnicate"`},
		"[storage]\nlimit = 5":              {"storage:", "a string, a number"},
		"[run-server]\nport = 5":            {`"run-server"`},
		"config = '/x'":                     {"config", "can't name another"},
		"help = true":                       {`"help"`},
		"force = true":                      {`"force"`},
		"port = 5.5":                        {"port:", "a number without a fraction"},
		"port = 2026-01-01":                 {"port:", "a string, a number"},
		"port = [80]":                       {"--port", "not a list"},
		"port = 70000":                      {"--port", `"70000"`, "0 to 65535", "--port is set by the file"},
		"ttl = 5":                           {"--ttl", `"5"`, "--ttl is set by the file"},
		"serve-remote-nars = 'x'":           {"--serve-remote-nars", `"x"`, "--serve-remote-nars is set by the file"},
		"x-accel-redirect = 'perhaps'":      {"--x-accel-redirect", `"perhaps"`, "--x-accel-redirect is set by the file"},
		"enable-cached-compression = ['x']": {"--enable-cached-compression", `"x"`, "zstd, lzip, gzip", "--enable-cached-compression is set by the file"},
		"port = ":                           {"not TOML", "line 1"},
		"port = 1\nport = 2":                {"not TOML", "port"},
	} {
		name := writeConfig(t, text+"\n")
		for _, args := range [][]string{{"config"}, {"run-server", "--storage=/nonexistent"}} {
			misuse(t, append(args, "--config="+name), append(wanted, name)...)
		}
	}
	misuse(t, []string{"config", "--config=/nonexistent/file"}, "--config=/nonexistent/file", "no such file")

	for _, test := range []struct {
		environment, args []string
		wanted            []string
	}{
		{[]string{"NAR_HERDER_PORT=udp"}, []string{"config"}, []string{"--port", "0 to 65535", "set by the environment variable NAR_HERDER_PORT"}},
		{[]string{"NAR_HERDER_STORAGE=s3://bucket?checksum=foo"}, []string{"run-server"}, []string{"--storage", "checksum", "set by the environment variable NAR_HERDER_STORAGE"}},
		{[]string{"NAR_HERDER_CONFIG=/nonexistent"}, []string{"config"}, []string{"--config=/nonexistent", "set by the environment variable NAR_HERDER_CONFIG"}},
		{[]string{"NAR_HERDER_ENABLE_CACHED_COMPRESSION=zstd;x"}, []string{"config"}, []string{`"x"`, "NAR_HERDER_ENABLE_CACHED_COMPRESSION"}},
		// Contradictory options.
		{[]string{"NAR_HERDER_STORAGE_LIMIT=10K"}, []string{"run-server", "--storage=/nonexistent", "--storage-hard-limit=5K"}, []string{"--storage-hard-limit is below", "--storage-limit is set by the environment variable NAR_HERDER_STORAGE_LIMIT"}},
		{[]string{"NAR_HERDER_VERIFY_RATE=0"}, []string{"check", "--storage=/nonexistent", "--verify"}, []string{"--verify-rate=0", "NAR_HERDER_VERIFY_RATE"}},
		// Variables can't select what a command removes.
		{[]string{"NAR_HERDER_TAG=a=b"}, []string{"remove"}, []string{"no <store-path> is named"}},
	} {
		r := runIn(t, test.environment, test.args...)
		if r.status != statusUsage || r.out != "" || strings.Count(r.err, "\n") != 1 {
			t.Errorf("%q %q: status %d, stdout %q, stderr %q", test.environment, test.args, r.status, r.out, r.err)
		}
		for _, text := range test.wanted {
			if !strings.Contains(r.err, text) {
				t.Errorf("%q %q: stderr does not have %q: %s", test.environment, test.args, text, r.err)
			}
		}
	}
}

// TestConfigOfCommands: all commands find the database and the storage in the same file or
// environment.
func TestConfigOfCommands(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	file := writeConfig(t, "database = '"+p.database+"'\nstorage = '"+p.storage+"'\nport = 0\ndatabase-dump = '"+p.dumpFile()+"'\nlog-level = 'INFO'\n")
	succeed(t, "import", "--config="+file, "--keep", published(greeting))
	environment := []string{"NAR_HERDER_DATABASE=" + p.database, "NAR_HERDER_STORAGE=" + p.storage, "NAR_HERDER_TAG=a=b;c=d"}
	if r := runIn(t, environment, "import", "--keep", published(entropy)); r.status != 0 || r.err != "" {
		t.Errorf("%+v", r)
	}
	if r := runIn(t, []string{"NAR_HERDER_CONFIG=" + file}, "list", "--tag=c=d"); r.status != 0 || r.out != "/gnu/store/"+entropy+"\n" {
		t.Errorf("%+v", r)
	}
	if r := runIn(t, environment, "export", t.TempDir()); r.status != 0 { // its --storage is required
		t.Errorf("%+v", r)
	}
	if r := runIn(t, append(environment, "NAR_HERDER_DATABASE="+p.database+"x"), "stats"); r.status != 1 || !strings.Contains(r.err, "--database is set by the environment variable NAR_HERDER_DATABASE") {
		t.Errorf("%+v", r)
	}
	cmd := command("run-server")
	cmd.Env = []string{"NAR_HERDER_CONFIG=" + file, "NAR_HERDER_LOG_LEVL=DEBUG", "NAR_HERDER_NEGATIVE_TTL=5s"}
	s := serve(t, cmd)
	if got := get(t, s.addresses[0], "/"+narinfoName(greeting)); got.StatusCode != 200 {
		t.Errorf("%s", got.Status)
	}
	if got := get(t, s.addresses[0], "/00000000000000000000000000000000.narinfo"); got.Header.Get("Cache-Control") != "max-age=5" {
		t.Errorf("negative TTL: %v", got.Header)
	}
	s.stop(t, syscall.SIGTERM)
	if log := s.err.String(); strings.Contains(log, "level=DEBUG") || !strings.Contains(log, "NAR_HERDER_LOG_LEVL sets no option: did you mean NAR_HERDER_LOG_LEVEL?") {
		t.Errorf("%s", log)
	}
}

// TestServiceLinks sets the variables that Kubernetes sets for services named nar-herder
// and nar-herder-control. Those with the name of an option are ignored.
func TestServiceLinks(t *testing.T) {
	t.Parallel()
	links := []string{
		"NAR_HERDER_PORT=tcp://10.0.0.1:80", "NAR_HERDER_SERVICE_HOST=10.0.0.1", "NAR_HERDER_SERVICE_PORT=80", "NAR_HERDER_PORT_80_TCP_ADDR=10.0.0.1",
		"NAR_HERDER_CONTROL_PORT=tcp://10.0.0.2:80",
	}
	warnings := []string{
		"NAR_HERDER_PORT is ignored: tcp://10.0.0.1:80 is a service link of Kubernetes, not a port",
		"NAR_HERDER_CONTROL_PORT is ignored: tcp://10.0.0.2:80 is a service link of Kubernetes, not a port",
		"NAR_HERDER_PORT_80_TCP_ADDR sets no option",
	}
	r := runIn(t, links, "config", "--config="+writeConfig(t, "port = 81\n"))
	if r.status != 0 || strings.Count(r.err, "\n") != len(links) || !strings.Contains(r.out, `"81"`) {
		t.Errorf("%+v", r)
	}
	p := newPlace(t)
	run := command(p.args("run-server", "--host=unix:"+filepath.Join(p.dir, "socket"), "--log-level=INFO")...)
	run.Env = links
	s := serve(t, run)
	s.stop(t, syscall.SIGTERM)
	for _, warning := range warnings {
		for where, text := range map[string]string{"config": r.err, "the log": s.err.String()} {
			if strings.Count(text, warning) != 1 {
				t.Errorf("%s does not have %q: %s", where, warning, text)
			}
		}
	}
}

// TestConfigSecrets: config and errors print no passwords.
func TestConfigSecrets(t *testing.T) {
	t.Parallel()
	file := writeConfig(t, "cached-compression-nar-source = 'https://user:hushhush@nars.example/x'\nstorage = 's3://bucket/prefix?secret_key=hushhush&endpoint=https%3A%2F%2Fuser%3Ahushhush%40s3.example&region=x'\n")
	environment := []string{"NAR_HERDER_MIRROR=https://user:hushhush@mirror.example/", "NAR_HERDER_STORAGE_NAR_REMOVAL_CRITERIA=stored-on=http://hushhush@one.example,unreferenced"}
	r := runIn(t, environment, "config", "--config="+file)
	for _, wanted := range []string{"https://xxxxx@mirror.example/", "https://xxxxx@nars.example/x", "stored-on=http://xxxxx@one.example,unreferenced", "secret_key=xxxxx&endpoint=https%3A%2F%2Fxxxxx%40s3.example&region=x"} {
		if !strings.Contains(r.out, wanted) {
			t.Errorf("%q is not in %s", wanted, r.out)
		}
	}
	if r.status != 0 || strings.Contains(r.out+r.err, "hushhush") {
		t.Errorf("%+v", r)
	}
	for _, args := range [][]string{{"--mirror=https://user:hushhush@mirror.example/?x"}, {"--mirror=ftp://user:hush/hushhush@mirror.example"}, {"--config=" + file, "--storage=s3://user:hushhush@bucket"}} {
		r := runProgram(t, append([]string{"run-server"}, args...)...)
		if r.status != statusUsage || strings.Contains(r.err, "hushhush") {
			t.Errorf("%+v", r)
		}
	}
}
