package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"

	"nar-herder/internal/testfs"
)

// hasLine returns whether a file has the lines of access logs for a target.
func hasLine(t *testing.T, file, target string) func() bool {
	return func() bool {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Error(err)
		}
		return strings.Contains(string(text), target)
	}
}

// TestAccessLog logs to a file, which is renamed meanwhile.
func TestAccessLog(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	p.imports(t, published(greeting))
	file := filepath.Join(p.dir, "access.log")
	s := p.serveProcess(t, "--log-level=INFO", "--access-log="+file)
	address := s.addresses[0]
	request(t, address, "GET", "/nar/lzip/"+greeting, "Range", "bytes=0-9", "User-Agent", `a "quoted" \ agent`, "X-Forwarded-For", "192.0.2.7")
	until(t, "the request is logged", hasLine(t, file, greeting))
	want := regexp.MustCompile(`(?m)^192\.0\.2\.7 - - \[\d\d/\w{3}/\d{4}:\d\d:\d\d:\d\d [+-]\d{4}\] "GET /nar/lzip/` + greeting + ` HTTP/1\.1" 206 10 "-" "a \\x22quoted\\x22 \\x5C agent" "bytes=0-9" \d+\.\d{6}$`)
	if text := read(t, file); !want.MatchString(text) {
		t.Errorf("%s", text)
	}
	rotated := file + ".1"
	if err := os.Rename(file, rotated); err != nil {
		t.Fatal(err)
	}
	get(t, address, "/before")
	until(t, "the old file is used", hasLine(t, rotated, "/before"))
	if err := s.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	until(t, "the file is reopened", func() bool { return strings.Contains(s.err.String(), "access log reopened") })
	get(t, address, "/after")
	until(t, "the new file is used", hasLine(t, file, "/after"))
	if strings.Contains(read(t, rotated), "/after") {
		t.Error("the old file is used")
	}
	if strings.Contains(s.err.String(), "/after") {
		t.Error("the log has requests as well")
	}
	// It can't be reopened: the open one stays.
	if err := os.Rename(file, rotated); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(file, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := s.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	until(t, "the log says so", func() bool { return strings.Contains(s.err.String(), "can't reopen the access log") })
	get(t, address, "/kept")
	s.stop(t, syscall.SIGTERM)
	if !hasLine(t, rotated, "/kept")() {
		t.Error("a line is lost")
	}
}

// TestAccessLogFiles refuses files that are something else.
func TestAccessLogFiles(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	p.imports(t, published(greeting))
	for _, file := range []string{p.database, published(greeting)} {
		before := read(t, file)
		fail(t, p.serverArgs("--access-log="+file), "--access-log="+file, "not an access log")
		if read(t, file) != before {
			t.Errorf("%s has changed", file)
		}
	}
	pipe := filepath.Join(p.dir, "pipe")
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	fail(t, p.serverArgs("--access-log="+pipe), "nothing reads from this pipe")
	for _, word := range []string{"stdout", "-", "on", "STDERR"} {
		fail(t, p.serverArgs("--access-log="+word), "--access-log="+word, "want off, stderr, or a file")
	}
	fail(t, p.serverArgs("--access-log="+p.dir), "is a directory")
	fail(t, p.serverArgs("--access-log="+filepath.Join(p.dir, "no", "x")), "no such file")
}

// TestAccessLogFull: a full disk stops the access log only, and the log says when it ends.
func TestAccessLogFull(t *testing.T) {
	t.Parallel()
	disk := testfs.Small(t, 1<<20)
	file := filepath.Join(disk, "access.log")
	s := newPlace(t).serveProcess(t, "--log-level=INFO", "--access-log="+file, "--log-format=text")
	free := testfs.Fill(t, disk)
	dropped := func() string { return metric(t, s.addresses[0], `narherder_log_lines_dropped_total{log="access"}`) }
	until(t, "lines are dropped", func() bool { get(t, s.addresses[0], "/"+strings.Repeat("x", 4000)); return dropped() != "0" })
	until(t, "the log says so", func() bool { return strings.Contains(s.err.String(), "lines of the access log are dropped") })
	free()
	until(t, "the log says that it is over", func() bool {
		get(t, s.addresses[0], "/")
		return strings.Contains(s.err.String(), "the access log is written again")
	})
	if n := strings.Count(s.err.String(), "lines of the access log are dropped"); n != 1 {
		t.Errorf("%d warnings", n)
	}
	s.stop(t, syscall.SIGTERM)
}

// TestLogStuck: nobody reads the log, and requests are answered nevertheless.
func TestLogStuck(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	socket := filepath.Join(p.dir, "socket")
	process := command(p.args("run-server", "--host=unix:"+socket, "--access-log=stderr")...)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	process.Stderr = w
	s := &server{process: process}
	s.start(t)
	w.Close()
	until(t, "the server answers", func() bool { got, err := tryGet(socket, "/nix-cache-info"); return err == nil && got.StatusCode == 200 })
	lines := slices.Repeat([]string{"/" + strings.Repeat("x", 4000)}, 100)
	until(t, "lines are dropped", func() bool {
		c, err := net.Dial("unix", socket)
		noError(t, err)
		defer c.Close()
		noError(t, pipelined(c, bufio.NewReader(c), lines, func(int, answer) {}))
		return metric(t, socket, `narherder_log_lines_dropped_total{log="log"}`) != "0"
	})
	go func() { _, _ = io.Copy(&s.err, r) }()
	until(t, "the log says that lines are lost", func() bool { return strings.Contains(s.err.String(), "lines of this log were dropped") })
	s.stop(t, syscall.SIGTERM)
}

// TestLogJSON: all lines of the log are objects.
func TestLogJSON(t *testing.T) {
	t.Parallel()
	for _, access := range []string{"off", "stderr"} {
		p := newPlace(t)
		socket := filepath.Join(p.dir, "socket")
		s := &server{process: within(p.args("run-server", "--host=unix:"+socket, "--log-format=json", "--access-log="+access)...)}
		s.start(t)
		until(t, "the server answers", func() bool { got, err := tryGet(socket, "/api/queue"); return err == nil && got.StatusCode == 404 })
		s.stop(t, syscall.SIGTERM)
		requests := 0
		for line := range strings.Lines(s.err.String()) {
			var got struct {
				Time, Path string
				Duration   float64 `json:"duration_seconds"`
			}
			if err := json.Unmarshal([]byte(line), &got); err != nil || got.Time == "" {
				t.Errorf("%q: %v", line, err)
			}
			if got.Path == "/api/queue" && got.Duration > 0 {
				requests++
			}
		}
		if requests != 1 {
			t.Errorf("--access-log=%s: %d lines of the request", access, requests)
		}
	}
}

// TestLogJournal: lines for the journal of systemd have priorities, and no times.
func TestLogJournal(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	name := filepath.Join(p.dir, "journal")
	start := func(args ...string) (*process, *os.File) {
		file, err := os.OpenFile(name, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { file.Close() })
		info, err := file.Stat()
		if err != nil {
			t.Fatal(err)
		}
		stat := info.Sys().(*syscall.Stat_t)
		process := command(args...)
		process.Stderr = file
		process.Env = append(process.Env, fmt.Sprintf("JOURNAL_STREAM=%d:%d", stat.Dev, stat.Ino))
		process.start(t)
		return process, file
	}
	socket := filepath.Join(p.dir, "socket")
	process, _ := start(p.args("run-server", "--host=unix:"+socket)...)
	until(t, "the server answers", func() bool {
		got, err := tryGet(socket, "/api/queue")
		return err == nil && got.StatusCode == http.StatusNotFound
	})
	(&server{process: process}).stop(t, syscall.SIGTERM)
	failing, _ := start("stats", "--database="+p.dir)
	failing.wait(t)
	log := read(t, name)
	for _, want := range []string{`<6>level=INFO msg=listening`, `<7>level=DEBUG msg=request`, `<4>level=WARN msg="no keys`, `<3>nar-herder: `} {
		if !strings.Contains(log, "\n"+want) {
			t.Errorf("no line %q in %s", want, log)
		}
	}
	for line := range strings.Lines(log) {
		if !strings.HasPrefix(line, "<") || strings.Contains(line, "time=") {
			t.Errorf("%q", line)
		}
	}
}
