package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// server is a running server under measurement.
type server struct {
	name    string
	address string
	secure  bool // address is for HTTPS
	command *exec.Cmd
	log     *bytes.Buffer
	exited  chan error
}

// start starts a server, and returns once it accepts connections.
func (b *bench) start(name, address, program string, args ...string) (*server, error) {
	s := &server{name: name, address: address, log: new(bytes.Buffer), exited: make(chan error, 1)}
	s.command = exec.Command(program, args...)
	s.command.Stderr = s.log
	s.command.SysProcAttr = &syscall.SysProcAttr{
		// The server ends with this program in any case. SIGTERM lets nginx stop its
		// workers.
		Pdeathsig: syscall.SIGTERM,
		// An interrupt from the terminal must only reach this program.
		Setpgid: true,
	}
	if err := s.command.Start(); err != nil {
		return nil, err
	}
	go func() { s.exited <- s.command.Wait() }()
	ctx, cancel := context.WithTimeout(b.ctx, 30*time.Second)
	defer cancel()
	for {
		conn, err := net.Dial("tcp", address)
		if err == nil {
			conn.Close()
			return s, nil
		}
		select {
		case err := <-s.exited:
			return nil, fmt.Errorf("%s exited at the start: %w\n%s", name, err, s.log)
		case <-ctx.Done():
			s.stop()
			return nil, fmt.Errorf("%s does not listen: %w", name, ctx.Err())
		case <-time.After(200 * time.Microsecond):
		}
	}
}

// stop stops the server.
func (s *server) stop() {
	_ = s.command.Process.Signal(syscall.SIGTERM)
	select {
	case <-s.exited:
	case <-time.After(5 * time.Second):
		// Kill the process group: a killed master leaves its workers running.
		_ = syscall.Kill(-s.command.Process.Pid, syscall.SIGKILL)
		<-s.exited
	}
}

// processes returns the ids of the server's process and its children.
func (s *server) processes() (pids []int) {
	main := s.command.Process.Pid
	names, _ := filepath.Glob("/proc/[0-9]*/stat") // the pattern is valid
	for _, name := range names {
		text, err := os.ReadFile(name)
		if err != nil {
			continue // the process has exited
		}
		pid, parent, _, err := parseStat(text)
		if err == nil && (pid == main || parent == main) {
			pids = append(pids, pid)
		}
	}
	return pids
}

// clockTick is the unit of times in /proc, see proc(5).
const clockTick = time.Second / 100

// parseStat parses the ids of a process and its parent, and the processor time, from
// /proc/PID/stat.
func parseStat(text []byte) (pid, parent int, cpu time.Duration, err error) {
	// The name in parentheses may contain any characters.
	opened, closed := bytes.IndexByte(text, '('), bytes.LastIndexByte(text, ')')
	if opened < 0 || closed < opened {
		return 0, 0, 0, errors.New("/proc/PID/stat has no name in parentheses")
	}
	fields := strings.Fields(string(text[closed+1:]))
	if len(fields) < 13 {
		return 0, 0, 0, errors.New("/proc/PID/stat is too short")
	}
	var numbers [4]int
	for i, field := range []string{strings.TrimSpace(string(text[:opened])), fields[1], fields[11], fields[12]} {
		if numbers[i], err = strconv.Atoi(field); err != nil {
			return 0, 0, 0, err
		}
	}
	return numbers[0], numbers[1], time.Duration(numbers[2]+numbers[3]) * clockTick, nil
}

// cpu returns the processor time that the server has used.
func (s *server) cpu() (total time.Duration, err error) {
	for _, pid := range s.processes() {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			return 0, err
		}
		_, _, used, err := parseStat(stat)
		if err != nil {
			return 0, err
		}
		total += used
	}
	return total, nil
}

// memory returns a field of /proc/PID/status in bytes: VmRSS, the resident memory, or VmHWM, its
// peak.
func (s *server) memory(field string) (int64, error) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.command.Process.Pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(status)) {
		if value, ok := strings.CutPrefix(line, field+":"); ok {
			n, err := strconv.ParseInt(strings.Fields(value)[0], 10, 64)
			return n << 10, err
		}
	}
	return 0, fmt.Errorf("/proc/PID/status has no %s", field)
}

// freeAddress returns an unused loopback address.
func freeAddress() (string, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer listener.Close()
	return listener.Addr().String(), nil
}

// nginx starts nginx for the files in a directory, tuned for that.
func (b *bench) nginx(root string) (*server, error) { return b.nginxWith(root, "") }

// nginxWith is nginx with further directives for the server.
func (b *bench) nginxWith(root, directives string) (*server, error) {
	address, err := freeAddress()
	if err != nil {
		return nil, err
	}
	work, err := os.MkdirTemp(b.work, "nginx-")
	if err != nil {
		return nil, err
	}
	// The file cache must leave file descriptors for connections and new files.
	const mostKept, left = 20_000, 2000
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return nil, err
	}
	files := min(limit.Max, 1<<16)
	if files < 2*left {
		return nil, fmt.Errorf("a process may have only %d files open, nginx needs %d here: see ulimit -Hn", files, 2*left)
	}
	config := fmt.Sprintf(`
worker_processes auto; worker_rlimit_nofile %[4]d; daemon off; pid %[1]s/pid; error_log stderr crit;
events { worker_connections 8192; }
http {
	access_log off; sendfile on; tcp_nopush on; keepalive_requests 1000000000; keepalive_timeout 600s;
	open_file_cache max=%[5]d inactive=600s; open_file_cache_valid 600s; open_file_cache_min_uses 1;
	default_type application/x-nix-narinfo;
	client_body_temp_path %[1]s; proxy_temp_path %[1]s; fastcgi_temp_path %[1]s; uwsgi_temp_path %[1]s; scgi_temp_path %[1]s;
	server { listen %[2]s; root %[3]s; %[6]s }
}`, work, address, root, files, min(mostKept, files-left), directives)
	if os.Getuid() == 0 {
		config = "user root;" + config
	}
	name := filepath.Join(work, "nginx.conf")
	if err := os.WriteFile(name, []byte(config), 0o644); err != nil {
		return nil, err
	}
	return b.start("nginx", address, "nginx", "-p", work, "-c", name)
}

// noDumps keeps servers from making a dump during a measurement, since a new database has none.
const noDumps = "--database-dump-interval=none"

// narHerder starts nar-herder for a database, and for a storage unless its name is empty.
func (b *bench) narHerder(database, storage string, options ...string) (*server, error) {
	address, err := freeAddress()
	if err != nil {
		return nil, err
	}
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	args := append([]string{"run-server", "--host=" + host, "--port=" + port, "--database=" + database,
		"--log-level=INFO", "--ttl=30d", noDumps}, options...)
	if storage != "" {
		args = append(args, "--storage="+storage)
	}
	return b.start("nar-herder", address, b.binary, args...)
}

// importWait bounds an import.
const importWait = 30 * time.Minute

// importTree imports generated items, and returns the time that it took. Most of their nars are
// random.
func (b *bench) importTree(database, storage, from string) (time.Duration, error) {
	if storage == "" {
		return b.importWith(database, from, "--narinfos-only")
	}
	return b.importWith(database, from, "--storage="+storage, "--no-verify")
}

// importWith runs nar-herder import with options.
func (b *bench) importWith(database, from string, options ...string) (time.Duration, error) {
	args := append([]string{"import", "--database=" + database}, options...)
	ctx, cancel := context.WithTimeout(b.ctx, importWait)
	defer cancel()
	command := exec.CommandContext(ctx, b.binary, append(args, from)...)
	begun := time.Now()
	if out, err := command.CombinedOutput(); err != nil {
		return 0, fmt.Errorf("nar-herder %s: %w\n%s", strings.Join(args, " "), err, out)
	}
	return time.Since(begun), nil
}

// url returns the URL of a path.
func (s *server) url(path string) string {
	if s.secure {
		return "https://" + s.address + path
	}
	return "http://" + s.address + path
}

// getWait bounds a get.
const getWait = time.Minute

var anyCertificate = &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}

// get returns the body at a path, which must be small.
func (s *server) get(path string) ([]byte, error) {
	client := http.Client{Timeout: getWait, Transport: anyCertificate}
	response, err := client.Get(s.url(path))
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err == nil && response.StatusCode != http.StatusOK {
		err = fmt.Errorf("GET %s from %s: %s", path, s.name, response.Status)
	}
	return body, err
}
