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
	seed     uint64
}

// bench is a run: settings, and what it has measured.
type bench struct {
	settings
	ctx  context.Context
	rows []row
}

// cases in the order of a run without arguments.
var cases = []struct {
	name, about string
	run         func(*bench) error
}{
	{"engines", "net/http and fasthttp behind a map of narinfos", (*bench).engines},
	{"narinfo", "narinfos of 1 to 3 KB, one request at a time and 64 pipelined", (*bench).narinfo},
	{"nar", "a nar of 1 GiB, and nars of 200 KB", (*bench).nar},
	{"idle", "narinfos beside 2,000 idle and 50 slow connections", (*bench).idle},
	{"index", "an index of a million narinfos: import, size, start, and look-ups in random order", (*bench).largeIndex},
}

func main() {
	if engine := os.Getenv(engineVariable); engine != "" {
		serveEngine(engine)
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
	flag.StringVar(&s.dir, "dir", "", "where to work; about 10 GB for the case index (default: a temporary directory)")
	flag.BoolVar(&s.keep, "keep", false, "leave generated narinfos in -dir, and use those that are there")
	flag.DurationVar(&s.duration, "duration", 5*time.Second, "length of each load")
	flag.IntVar(&s.rounds, "rounds", 5, "how often each pair is measured")
	flag.IntVar(&s.narinfos, "narinfos", 10_000, "narinfos in the case narinfo")
	flag.IntVar(&s.index, "index", 1_000_000, "narinfos in the case index")
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
	for _, program := range []string{"nginx", "wrk", "curl"} {
		if _, err := exec.LookPath(program); err != nil {
			return fmt.Errorf("%w: on Debian, apt-get install nginx-light wrk curl", err)
		}
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if s.dir == "" {
		if s.dir, err = os.MkdirTemp("", "nar-herder-bench-"); err != nil {
			return err
		}
	}
	if s.dir, err = filepath.Abs(s.dir); err != nil {
		return err
	}
	if !s.keep {
		defer func() { err = errors.Join(err, os.RemoveAll(s.dir)) }()
	}
	if err := os.MkdirAll(s.dir, 0o755); err != nil {
		return err
	}
	if s.binary == "" {
		s.binary = filepath.Join(s.dir, "nar-herder")
		build := exec.CommandContext(ctx, "go", "build", "-o", s.binary, "./cmd/nar-herder")
		if out, err := build.CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w\n%s", strings.Join(build.Args, " "), err, out)
		}
	}
	b := &bench{settings: s, ctx: ctx}
	for _, c := range cases {
		if flag.NArg() > 0 && !slices.Contains(flag.Args(), c.name) {
			continue
		}
		fmt.Fprintf(os.Stderr, "%s: %s\n", c.name, c.about)
		if err := c.run(b); err != nil {
			return fmt.Errorf("case %s: %w", c.name, err)
		}
	}
	fmt.Printf("%d cores, %s, %s, %s; loads of %v, medians of %d rounds (least to most)\n\n",
		runtime.NumCPU(), runtime.Version(), nginxVersion(), time.Now().Format(time.DateOnly), s.duration, s.rounds)
	missed := b.print(os.Stdout)
	if missed > 0 && *strict {
		return fmt.Errorf("%d bars missed", missed)
	}
	return nil
}

func nginxVersion() string {
	out, _ := exec.Command("nginx", "-v").CombinedOutput()
	return strings.TrimSpace(strings.TrimPrefix(string(out), "nginx version: "))
}
