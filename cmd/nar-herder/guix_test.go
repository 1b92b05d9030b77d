package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// guixService is nar-herder-configuration of Guix (gnu/services/guix.scm), with the fields
// of 2026 at the end. Empty fields are #f, or an empty list.
type guixService struct {
	year                           int
	mirror, database, databaseDump string
	host, port                     string
	storage, storageLimit          string
	removalCriteria                []string
	ttl, newTTL, negativeTTL       string
	logLevel                       string
	cachedCompressions             []guixCompression
	minUses, workers, narSource    string
	extraEnvironmentVariables      []string
	controlHost, controlPort       string
	minimumFreeSpace               string
	extraOptions                   []string
	pidFile                        string // /var/run/nar-herder/pid there
}

// guixCompression is nar-herder-cached-compression-configuration.
type guixCompression struct {
	kind, level, directory, directoryMaxSize, unusedRemovalDuration, ttl, newTTL string
}

// arguments returns the command line that the service makes of the record, in its order.
func (g *guixService) arguments() []string {
	arguments := []string{"run-server", "--pid-file=" + g.pidFile, "--port=" + g.port, "--host=" + g.host}
	add := func(option, value string) {
		if value != "" {
			arguments = append(arguments, "--"+option+"="+value)
		}
	}
	if g.year >= 2026 {
		add("control-port", g.controlPort)
		add("control-host", g.controlHost)
	}
	add("mirror", g.mirror)
	add("database", g.database)
	add("database-dump", g.databaseDump)
	add("storage", g.storage)
	add("storage-limit", g.storageLimit)
	if g.year >= 2026 {
		add("storage-minimum-free-space", g.minimumFreeSpace)
	}
	for _, criterion := range g.removalCriteria {
		add("storage-nar-removal-criteria", criterion)
	}
	add("ttl", g.ttl)
	add("new-ttl", g.newTTL)
	add("negative-ttl", g.negativeTTL)
	add("log-level", g.logLevel)
	for _, c := range g.cachedCompressions {
		enabled := c.kind
		if c.level != "" {
			enabled += ":" + c.level
		}
		add("enable-cached-compression", enabled)
		for _, option := range [][2]string{
			{"directory", c.directory}, {"directory-max-size", c.directoryMaxSize}, {"unused-removal-duration", c.unusedRemovalDuration},
			{"ttl", c.ttl}, {"new-ttl", c.newTTL},
		} {
			if option[1] != "" {
				add("cached-compression-"+option[0], c.kind+"="+option[1])
			}
		}
	}
	add("cached-compression-min-uses", g.minUses)
	add("cached-compression-workers", g.workers)
	add("cached-compression-nar-source", g.narSource)
	if g.year >= 2026 {
		arguments = append(arguments, g.extraOptions...)
	}
	return arguments
}

// environment returns the whole environment of the process.
func (g *guixService) environment() []string {
	return append([]string{"GUIX_LOCPATH=/gnu/store/00000000000000000000000000000000-glibc-utf8-locales-2.39/lib/locale", "LC_ALL=en_US.utf8"}, g.extraEnvironmentVariables...)
}

// newGuixService returns a record with the defaults, except for files, which are in a
// directory of the test, and addresses, which are separate loopback addresses with the
// service's ports. Mirror or storage must be set.
func newGuixService(p place, year int) *guixService {
	return &guixService{
		year: year, host: ownHost(), port: "8734", controlHost: ownHost(), controlPort: "8735",
		database: p.database, databaseDump: p.dumpFile(), storageLimit: "none", minimumFreeSpace: "none",
		logLevel: "DEBUG", minUses: "3", workers: "2", pidFile: filepath.Join(p.dir, "pid"),
	}
}

// guixRecords returns what sets the fields of some records, by name.
func guixRecords(mirror string) map[string]func(*guixService, place) {
	full := func(g *guixService, p place) {
		g.mirror, g.storage, g.storageLimit = mirror, p.storage, "1000000000"
		g.removalCriteria = []string{"stored-on=" + mirror, "stored-on=https://nars.example/guix"}
		g.ttl, g.newTTL, g.negativeTTL, g.logLevel = "30d", "7d", "1h", "INFO"
		g.cachedCompressions = []guixCompression{
			{"zstd", "19", filepath.Join(p.dir, "zstd"), "500000000", "14d", "20d", "5d"},
			{kind: "lzip", directory: filepath.Join(p.dir, "lzip")},
		}
		g.minUses, g.workers, g.narSource = "5", "4", mirror
		g.extraEnvironmentVariables = []string{"SSL_CERT_DIR=/etc/ssl/certs", "NAR_HERDER_NARINFO_CACHE_SIZE=16MiB", "NAR_HERDER_EXTRA="}
		g.minimumFreeSpace = "1000000"
		g.extraOptions = []string{"--mirror-bandwidth=50M", "--public-metrics=no"}
	}
	// The example of docs/install.md.
	example := func(g *guixService, p place) {
		key := filepath.Join(p.dir, "signing-key.pub")
		if err := os.WriteFile(key, must(os.ReadFile(caseKeys("main.pub"))), 0o644); err != nil {
			panic(err)
		}
		g.storage, g.ttl, g.negativeTTL, g.logLevel = p.storage, "30d", "1h", "INFO"
		g.extraEnvironmentVariables = []string{"NAR_HERDER_SIGNING_KEY=" + key, "NAR_HERDER_ACL=" + must(filepath.Abs(caseKeys("acl"))), "NAR_HERDER_NARINFO_CACHE_SIZE=256MiB"}
		g.extraOptions = []string{"--narinfo-cache-size=256MiB"}
	}
	return map[string]func(*guixService, place){
		"example": example,
		"storage": func(g *guixService, p place) { g.storage = p.storage },
		"mirror":  func(g *guixService, _ place) { g.mirror = mirror },
		"full":    full,
	}
}

// TestGuixService runs the command lines that the service definition of Guix makes of its
// records.
func TestGuixService(t *testing.T) {
	t.Parallel()
	source := newPlace(t)
	source.imports(t, published(greeting))
	succeed(t, "dump", "--database="+source.database, "--database-dump="+source.dumpFile())
	from := source.serve(t, "--log-level=INFO")
	mirror := "http://" + from.addresses[0]

	for name, set := range guixRecords(mirror) {
		for _, year := range []int{2025, 2026} {
			t.Run(fmt.Sprint(name, " ", year), func(t *testing.T) {
				t.Parallel()
				p := newPlace(t)
				g := newGuixService(p, year)
				set(g, p)
				cmd := command(g.arguments()...)
				cmd.Env, cmd.Dir = g.environment(), p.dir
				s := &server{process: cmd}
				s.start(t)
				running := func() {
					t.Helper()
					select {
					case <-s.ended:
						t.Fatalf("the server has ended: %s", s.err.String())
					default:
					}
				}
				until(t, "the process id", func() bool {
					running()
					_, err := os.Stat(g.pidFile)
					return err == nil
				})
				if got, want := read(t, g.pidFile), strconv.Itoa(s.Process.Pid)+"\n"; got != want {
					t.Errorf("pid file %q, want %q", got, want)
				}
				address := g.host + ":" + g.port
				until(t, "it answers", func() bool {
					running()
					got, err := tryGet(address, "/nix-cache-info")
					return err == nil && got.StatusCode == 200
				})
				if g.mirror != "" {
					until(t, "the narinfo of the mirrored instance", func() bool { return get(t, address, "/"+narinfoName(greeting)).StatusCode == 200 })
				}
				if got := get(t, address, "/"); got.StatusCode != 404 { // as the test of Guix System expects
					t.Errorf("%s", got.Status)
				}
				if name == "example" {
					if got := get(t, address, "/signing-key.pub"); got.StatusCode != 200 || got.body != publicKey(t, "main.pub") {
						t.Errorf("%s %q", got.Status, got.body)
					}
				}
				public := 200
				if year >= 2026 {
					control := g.controlHost + ":" + g.controlPort
					for _, path := range []string{"/metrics", "/health", "/debug/pprof/"} {
						if got := askByAddress(t, control, path); got.StatusCode != 200 {
							t.Errorf("%s: %s %s", path, got.Status, got.body)
						}
					}
					if name == "full" {
						public = 404
					}
				}
				for _, path := range []string{"/metrics", "/health"} {
					if got := get(t, address, path); got.StatusCode != public {
						t.Errorf("public %s: %s", path, got.Status)
					}
				}
				s.stop(t, syscall.SIGTERM)
				if _, err := os.Stat(g.pidFile); !os.IsNotExist(err) {
					t.Errorf("the pid file: %v", err)
				}
				keysWarnings := 0
				for line := range strings.Lines(s.err.String()) {
					if strings.Contains(line, "no keys are authorized") {
						keysWarnings++
					} else if strings.Contains(line, "level=ERROR") || strings.Contains(line, "level=WARN") && !strings.Contains(line, "NAR_HERDER_EXTRA sets no option") {
						t.Errorf("%s", line)
					}
				}
				want := 1
				if name == "example" {
					want = 0
				}
				if keysWarnings != want {
					t.Errorf("%d warnings about keys, want %d", keysWarnings, want)
				}
			})
		}
	}
}
