// Command bench measures nar-herder beside nginx: both in one run, on loopback,
// in turn, so that the ratios hold whatever the machine does meanwhile.
//
//	go run ./cmd/bench [OPTIONS] [CASE…]
//
// It builds nar-herder, or takes -binary, and needs nginx, wrk and curl. All
// loads are bounded in time; servers end, and files go, when it ends.
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

// settings are the options.
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

// bench is a run: settings, and what it has measured.
type bench struct {
	settings
	ctx   context.Context
	work  string // a directory that goes when the run ends
	trees string // where generated narinfos are: the same, or that of -keep
	rows  []row
}

// cases in the order of a run without arguments.
var cases = []struct {
	name, about string
	run         func(*bench) error
}{
	{"engines", "net/http and fasthttp behind a map of narinfos", (*bench).engines},
	{"narinfo", "narinfos of 1 to 3 KB, one request at a time and 64 pipelined", (*bench).narinfo},
	{"nar", "a nar of 1 GiB, and nars of 200 KB", (*bench).nar},
	{"index", "an index of a million narinfos: import, size, start, and look-ups in random order", (*bench).largeIndex},
	{"codecs", "compressions against the programs lzip, zstd and gzip: speed and size, and the making of cached nars", (*bench).codecs},
	{"cached", "narinfos that name cached nars, against the same without", (*bench).cached},
	{"removal", "nars that go while the storage is above its limit, of a million, and what that costs narinfos", (*bench).removal},
	{"mirror", "a mirror of a million items: from nothing against curl of the dump, catching up, following, and a nar that many ask for", (*bench).mirror},
	{"frontend", "nars of a bucket through a front end, against the same objects from the S3 server itself", (*bench).frontEnd},
	{"slow", "a nar that is decompressed, beside 200 clients that take theirs slowly", (*bench).slow},
	{"idle", "narinfos beside 2,000 idle and 50 slow connections", (*bench).idle},
}

func main() {
	if engine := os.Getenv(engineVariable); engine != "" {
		serveEngine(engine)
		return
	}
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
	strict := flag.Bool("strict", false, "exit with an error when a bar is missed")
	flag.StringVar(&s.binary, "binary", "", "a nar-herder to measure, in the place of this tree's")
	flag.StringVar(&s.dir, "dir", "", "where to work, with 12 GB free for the case index, and 31 GB for the case mirror (default: that for temporary files)")
	flag.BoolVar(&s.keep, "keep", false, "leave generated narinfos in -dir, and use those that an earlier run left")
	flag.DurationVar(&s.duration, "duration", 5*time.Second, "length of each load")
	flag.IntVar(&s.rounds, "rounds", 3, "how often each pair is measured")
	flag.IntVar(&s.narinfos, "narinfos", 10_000, "narinfos in the case narinfo")
	flag.IntVar(&s.index, "index", 1_000_000, "items in the cases index and removal")
	flag.IntVar(&s.items, "items", 1_000_000, "items of the source in the case mirror")
	flag.IntVar(&s.changes, "changes", 100_000, "items that it gets there while the mirror is away")
	flag.IntVar(&s.imports, "imports", 1000, "items that it gets there one at a time")
	flag.Int64Var(&s.coldNar, "cold-nar", 1<<30, "size of the nar that 100 clients ask for there, in bytes")
	flag.Uint64Var(&s.seed, "seed", 1, "of what is generated")
	flag.Usage = func() {
		fmt.Fprintln(flag.CommandLine.Output(), "usage: bench [OPTIONS] [CASE…]; cases, all without one named:")
		for _, c := range cases {
			fmt.Fprintf(flag.CommandLine.Output(), "  %-8s  %s\n", c.name, c.about)
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
			return fmt.Errorf("there is no case %q; -h lists them", name)
		}
	}
	switch {
	case s.keep && s.dir == "":
		return errors.New("-keep needs -dir, to be told where")
	case s.duration < time.Second || s.duration > 10*time.Minute || s.duration%time.Second != 0:
		return fmt.Errorf("-duration=%v: must be whole seconds, 10m at most", s.duration)
	case s.rounds < 1 || s.rounds > 1000:
		return fmt.Errorf("-rounds=%d: must be 1 to 1000", s.rounds)
	case s.narinfos < pipelined || s.index < pipelined:
		return fmt.Errorf("-narinfos=%d -index=%d: must be %d at least", s.narinfos, s.index, pipelined)
	case s.items < 1 || s.changes < 1 || s.imports < 1 || s.coldNar < coldPage:
		return fmt.Errorf("-items=%d -changes=%d -imports=%d -cold-nar=%d: must be 1 at least, and the nar %d bytes", s.items, s.changes, s.imports, s.coldNar, coldPage)
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
	// Only what this run makes is removed, whatever else -dir has in it.
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
			// What the other cases measure is printed all the same.
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
