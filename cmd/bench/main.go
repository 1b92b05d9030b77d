// Command bench compares nar-herder with nginx and other programs. It measures both in turn on
// loopback, so that the ratios hold on a busy machine too.
//
//	go run ./cmd/bench [OPTIONS] [CASE…]
//
// It builds nar-herder, or uses -binary, and needs nginx, wrk and curl. Every load has a time
// limit. At the end, it stops its servers and removes its files.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"
)

// settings are the command-line options.
type settings struct {
	binary   string
	dir      string
	keep     bool
	duration time.Duration
	rounds   int
	narinfos int
	index    int
	items    int
	changes  int
	imports  int
	coldNar  int64
	seed     uint64
}

// bench is a run: its settings and results.
type bench struct {
	settings
	ctx   context.Context
	work  string // directory that is removed at the end
	trees string // directory of generated narinfos: work, or -dir with -keep
	rows  []row
}

// cases are in the order of a run without arguments.
var cases = []struct {
	name, about string
	run         func(*bench) error
}{
	{"narinfo", "narinfos of 1 to 3 KB, one request at a time and 64 pipelined", (*bench).narinfo},
	{"nar", "a nar of 1 GiB, and nars of 200 KB", (*bench).nar},
	{"tls", "narinfos and nars over HTTPS", (*bench).tls},
	{"index", "an index of a million narinfos: import, size, start, and look-ups in random order", (*bench).largeIndex},
	{"import", "import of nars, each verified, against decompressing them", (*bench).importVerified},
	{"codecs", "speed and size of compressions against the programs lzip, zstd and gzip, and jobs of the cache", (*bench).codecs},
	{"signature", "verification of narinfos' signatures, against Ed25519 of Go's library", (*bench).signature},
	{"cached", "narinfos that list cached nars, against narinfos without", (*bench).cached},
	{"removal", "removal of nars from a storage of a million items, and its effect on narinfo requests", (*bench).removal},
	{"mirror", "a mirror of a million items: bootstrap against curl of the dump, catching up, following, and a nar that many clients request", (*bench).mirror},
	{"keys", "a mirror of a million items with keys, from nothing, against the verification of their signatures", (*bench).keys},
	{"frontend", "nars in a bucket through a front end, against the same objects from the S3 server itself", (*bench).frontEnd},
	{"cache", "nars through a cache, against the upstream itself and stored ones", (*bench).cache},
	{"scrub", "the effect of a scrub on narinfo requests", (*bench).scrub},
	{"slow", "a nar that is decompressed for the client, beside 200 slow clients", (*bench).slow},
	{"burst", "a burst of 1,000 narinfos through a cache with a distant upstream", (*bench).burst},
	{"page", "searches and pages for browsers with an index of a million items, and their effect on narinfo requests", (*bench).page},
	{"idle", "narinfos beside 2,000 idle and 50 slow connections", (*bench).idle},
}

func main() {
	if work := os.Getenv(codecVariable); work != "" {
		if err := codec(strings.Fields(work)); err != nil {
			fmt.Fprintln(os.Stderr, "bench:", err)
			os.Exit(1)
		}
		return
	}
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run() (err error) {
	var s settings
	strict := flag.Bool("strict", false, "fail if a bar is missed")
	flag.StringVar(&s.binary, "binary", "", "nar-herder to measure, instead of the one in this tree")
	flag.StringVar(&s.dir, "dir", "", "working directory; the case index needs 12 GB, the case mirror 31 GB (default: that for temporary files)")
	flag.BoolVar(&s.keep, "keep", false, "keep generated narinfos in -dir, and reuse those of an earlier run")
	flag.DurationVar(&s.duration, "duration", 5*time.Second, "length of each load")
	flag.IntVar(&s.rounds, "rounds", 3, "number of measurements of each pair")
	flag.IntVar(&s.narinfos, "narinfos", 10_000, "narinfos in the case narinfo")
	flag.IntVar(&s.index, "index", 1_000_000, "items in the cases index, removal and page")
	flag.IntVar(&s.items, "items", 1_000_000, "items at the source in the cases mirror and keys")
	flag.IntVar(&s.changes, "changes", 100_000, "items added there while the mirror is down")
	flag.IntVar(&s.imports, "imports", 1000, "items imported there one at a time")
	flag.Int64Var(&s.coldNar, "cold-nar", 1<<30, "size in bytes of the nar that 100 clients request there")
	flag.Uint64Var(&s.seed, "seed", 1, "seed of generated narinfos")
	flag.Usage = func() {
		fmt.Fprintln(flag.CommandLine.Output(), "usage: bench [OPTIONS] [CASE…]; cases, all without one named:")
		for _, c := range cases {
			fmt.Fprintf(flag.CommandLine.Output(), "  %-9s  %s\n", c.name, c.about)
		}
		flag.PrintDefaults()
	}
	flag.Parse()
	for _, name := range flag.Args() {
		if !slices.ContainsFunc(cases, func(c struct {
			name, about string
			run         func(*bench) error
		}) bool {
			return c.name == name
		}) {
			return fmt.Errorf("unknown case %q; -h lists the cases", name)
		}
	}
	switch {
	case s.keep && s.dir == "":
		return errors.New("-keep needs -dir")
	case s.duration < time.Second || s.duration > 10*time.Minute || s.duration%time.Second != 0:
		return fmt.Errorf("-duration=%v: want whole seconds, at most 10m", s.duration)
	case s.rounds < 1 || s.rounds > 1000:
		return fmt.Errorf("-rounds=%d: want 1 to 1000", s.rounds)
	case s.narinfos < pipelined || s.index < pipelined:
		return fmt.Errorf("-narinfos=%d -index=%d: want at least %d", s.narinfos, s.index, pipelined)
	case s.items < 1 || s.changes < 1 || s.imports < 1 || s.coldNar < coldPage:
		return fmt.Errorf("-items=%d -changes=%d -imports=%d -cold-nar=%d: want at least 1, and for the nar %d bytes", s.items, s.changes, s.imports, s.coldNar, coldPage)
	}
	for _, program := range []string{"nginx", "wrk", "curl"} {
		if _, err := exec.LookPath(program); err != nil {
			return fmt.Errorf("%w: on Debian, apt-get install nginx-light wrk curl", err)
		}
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	b := &bench{settings: s, ctx: ctx}
	if s.dir != "" {
		if b.dir, err = filepath.Abs(s.dir); err != nil {
			return err
		}
		if err := os.MkdirAll(b.dir, 0o755); err != nil {
			return err
		}
	}
	// -dir may contain other files, so only a new directory is removed.
	if b.work, err = os.MkdirTemp(b.dir, "nar-herder-bench-"); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(b.work)) }()
	b.trees = b.work
	if b.keep {
		b.trees = b.dir
	}
	if b.binary == "" {
		b.binary = filepath.Join(b.work, "nar-herder")
		build := exec.CommandContext(ctx, "go", "build", "-o", b.binary, "nar-herder/cmd/nar-herder")
		if out, err := build.CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w\n%s", strings.Join(build.Args, " "), err, out)
		}
	}
	var failures []error
	for _, c := range cases {
		if flag.NArg() > 0 && !slices.Contains(flag.Args(), c.name) {
			continue
		}
		fmt.Fprintf(os.Stderr, "%s: %s\n", c.name, c.about)
		if err := c.run(b); err != nil {
			// Run the other cases, and print their results.
			failures = append(failures, fmt.Errorf("case %s: %w", c.name, err))
		}
		if ctx.Err() != nil {
			failures = []error{errors.New("interrupted")}
			break
		}
	}
	fmt.Printf("%d cores, %s, %s, %s; loads of %v, medians of %d rounds (least to most)\n\n",
		runtime.NumCPU(), runtime.Version(), nginxVersion(), time.Now().Format(time.DateOnly), s.duration, s.rounds)
	missed := b.print(os.Stdout)
	if missed > 0 && *strict {
		failures = append(failures, fmt.Errorf("bars missed: %d", missed))
	}
	return errors.Join(failures...)
}

func nginxVersion() string {
	out, _ := exec.Command("nginx", "-v").CombinedOutput()
	return strings.TrimSpace(strings.TrimPrefix(string(out), "nginx version: "))
}
