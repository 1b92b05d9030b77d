package main

import (
	"bytes"
	"context"
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
	command *exec.Cmd
	log     *bytes.Buffer
	exited  chan error
}

// start runs a server, and returns once it accepts connections.
func (b *bench) start(name, address string, env []string, program string, args ...string) (*server, error) {
	s := &server{name: name, address: address, log: new(bytes.Buffer), exited: make(chan error, 1)}
	s.command = exec.Command(program, args...)
	s.command.Env = append(os.Environ(), env...)
	s.command.Stderr = s.log
	// It ends with this program, however that ends.
	s.command.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
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
			return nil, fmt.Errorf("%s ended at once: %w\n%s", name, err, s.log)
		case <-ctx.Done():
			s.stop()
			return nil, fmt.Errorf("%s does not listen: %w", name, ctx.Err())
		case <-time.After(time.Millisecond):
		}
	}
}

// stop ends the server.
func (s *server) stop() {
	_ = s.command.Process.Signal(syscall.SIGTERM)
	select {
	case <-s.exited:
	case <-time.After(5 * time.Second):
		_ = s.command.Process.Kill()
		<-s.exited
	}
}

// processes returns the ids of the server's process and its children.
func (s *server) processes() (pids []int) {
	pids = []int{s.command.Process.Pid}
	children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pids[0], pids[0]))
	if err != nil {
		return pids
	}
	for _, field := range strings.Fields(string(children)) {
		if pid, err := strconv.Atoi(field); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids
}

// cpu returns the processor time that the server has used.
func (s *server) cpu() (total time.Duration, err error) {
	for _, pid := range s.processes() {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			return 0, err
		}
		// The name, in parentheses, may hold anything.
		_, rest, _ := strings.Cut(string(stat), ") ")
		fields := strings.Fields(rest)
		if len(fields) < 13 {
			return 0, errors.New("/proc/PID/stat is too short")
		}
		for _, field := range fields[11:13] { // utime and stime, see proc(5)
			ticks, err := strconv.ParseInt(field, 10, 64)
			if err != nil {
				return 0, err
			}
			const tick = time.Second / 100 // USER_HZ
			total += time.Duration(ticks) * tick
		}
	}
	return total, nil
}

// peakMemory returns the most memory the server has had resident, in bytes.
func (s *server) peakMemory() (int64, error) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.command.Process.Pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(status)) {
		if value, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			n, err := strconv.ParseInt(strings.Fields(value)[0], 10, 64)
			return n << 10, err
		}
	}
	return 0, errors.New("/proc/PID/status has no VmHWM")
}

// freeAddress returns a loopback address that nobody listens on.
func freeAddress() (string, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer listener.Close()
	return listener.Addr().String(), nil
}

// nginx serves the files in a directory, set up as well as it can be for that.
func (b *bench) nginx(root string) (*server, error) {
	address, err := freeAddress()
	if err != nil {
		return nil, err
	}
	work, err := os.MkdirTemp(b.dir, "nginx-")
	if err != nil {
		return nil, err
	}
	config := fmt.Sprintf(`
worker_processes auto; daemon off; pid %[1]s/pid; error_log stderr crit;
events { worker_connections 8192; }
http {
	access_log off; sendfile on; tcp_nopush on; keepalive_requests 1000000000; keepalive_timeout 600s;
	open_file_cache max=20000 inactive=600s; open_file_cache_valid 600s; open_file_cache_min_uses 1;
	default_type application/x-nix-narinfo;
	client_body_temp_path %[1]s; proxy_temp_path %[1]s; fastcgi_temp_path %[1]s; uwsgi_temp_path %[1]s; scgi_temp_path %[1]s;
	server { listen %[2]s; root %[3]s; }
}`, work, address, root)
	if os.Getuid() == 0 {
		config = "user root;" + config
	}
	name := filepath.Join(work, "nginx.conf")
	if err := os.WriteFile(name, []byte(config), 0o644); err != nil {
		return nil, err
	}
	return b.start("nginx", address, nil, "nginx", "-p", work, "-c", name)
}

// narHerder serves a database and a storage.
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
		"--storage=" + storage, "--log-level=INFO", "--ttl=30d"}, options...)
	return b.start("nar-herder", address, nil, b.binary, args...)
}

// importTree runs nar-herder import, and returns how long it took.
func (b *bench) importTree(database, storage, from string) (time.Duration, error) {
	args := []string{"import", "--database=" + database}
	if storage != "" {
		args = append(args, "--storage="+storage)
	}
	command := exec.CommandContext(b.ctx, b.binary, append(args, from)...)
	begun := time.Now()
	if out, err := command.CombinedOutput(); err != nil {
		return 0, fmt.Errorf("nar-herder %s: %w\n%s", strings.Join(args, " "), err, out)
	}
	return time.Since(begun), nil
}

// get fetches a path from the server.
func (s *server) get(path string) ([]byte, error) {
	response, err := http.Get("http://" + s.address + path)
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
