package main

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// withSockets runs the program as systemd does, with open sockets and its own process id in
// the environment, which only a shell in between can set.
func withSockets(files []*os.File, environment []string, args ...string) *process {
	p := commandOf(exec.Command("/bin/sh", append([]string{"-c", `export LISTEN_PID=$$; exec "$@"`, "sh", binary}, args...)...))
	p.ExtraFiles = files
	p.Env = append(p.Env, environment...)
	return p
}

func TestSocketActivation(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	p.imports(t, published(greeting))
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	unix, err := net.Listen("unix", filepath.Join(p.dir, "socket"))
	if err != nil {
		t.Fatal(err)
	}
	defer tcp.Close()
	defer unix.Close()
	var files []*os.File
	for _, l := range []interface{ File() (*os.File, error) }{tcp.(*net.TCPListener), unix.(*net.UnixListener)} {
		file, err := l.File()
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		files = append(files, file)
	}
	// A client that connects before the server starts is served.
	early := make(chan error, 1)
	go func() {
		got, err := tryGet(tcp.Addr().String(), "/nix-cache-info")
		if err == nil && got.StatusCode != 200 {
			err = os.ErrInvalid
		}
		early <- err
	}()
	s := serve(t, withSockets(files, []string{"LISTEN_FDS=2"}, p.args("run-server", "--port=1")...))
	if err := <-early; err != nil {
		t.Error(err)
	}
	for _, address := range []string{tcp.Addr().String(), unix.Addr().String()} {
		if got := get(t, address, "/nar/lzip/"+greeting); got.StatusCode != 200 {
			t.Errorf("%s: %s", address, got.Status)
		}
	}
	s.stop(t, syscall.SIGTERM)
	// systemd keeps the sockets open for the next server.
	if _, err := os.Stat(unix.Addr().String()); err != nil {
		t.Errorf("the socket of systemd: %v", err)
	}
}

// TestForeignSocketVariables sets the variables for a parent process, which this process must
// ignore.
func TestForeignSocketVariables(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	cmd := command(p.args("run-server", "--port=0")...)
	cmd.Env = []string{"LISTEN_FDS=1", "LISTEN_PID=1"}
	s := serve(t, cmd)
	if got := get(t, s.addresses[0], "/nix-cache-info"); got.StatusCode != 200 {
		t.Errorf("%s", got.Status)
	}
}

// TestDatagramSocket: a unit with ListenDatagram.
func TestDatagramSocket(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	file, err := conn.(*net.UDPConn).File()
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	s := withSockets([]*os.File{file}, []string{"LISTEN_FDS=1"}, p.args("run-server")...)
	s.start(t)
	if status := s.wait(t); status != 1 || !strings.Contains(s.err.String(), "ListenStream") || strings.Count(s.err.String(), "\n") != 1 {
		t.Errorf("status %d, %s", status, s.err.String())
	}
	if _, err := os.Stat(p.database); !os.IsNotExist(err) {
		t.Errorf("the database: %v", err)
	}
}

// TestReadiness notifies systemd when the server is ready, and when it stops.
func TestReadiness(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	name := filepath.Join(p.dir, "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: name, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	receive := func() string {
		t.Helper()
		_ = conn.SetReadDeadline(time.Now().Add(patience))
		message := make([]byte, 4096)
		n, err := conn.Read(message)
		if err != nil {
			t.Fatal(err)
		}
		return string(message[:n])
	}
	host := ownHost()
	cmd := command(p.args("run-server", "--host="+host, "--port="+instancePort)...)
	cmd.Env = []string{"NOTIFY_SOCKET=" + name}
	cmd.start(t)
	if got := receive(); got != "READY=1" {
		t.Errorf("got %q", got)
	}
	if got := get(t, host+":"+instancePort, "/health"); got.StatusCode != 200 {
		t.Errorf("after the notification: %s", got.Status)
	}
	s := &server{process: cmd}
	s.stop(t, syscall.SIGTERM)
	if got := receive(); got != "STOPPING=1" {
		t.Errorf("got %q", got)
	}
}

// TestNotifySocketMissing: a missing NOTIFY_SOCKET doesn't stop the server.
func TestNotifySocketMissing(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	cmd := command(p.args("run-server", "--port=0")...)
	cmd.Env = []string{"NOTIFY_SOCKET=" + filepath.Join(p.dir, "nonexistent")}
	s := serve(t, cmd)
	if got := get(t, s.addresses[0], "/nix-cache-info"); got.StatusCode != 200 {
		t.Errorf("%s", got.Status)
	}
	s.stop(t, syscall.SIGTERM)
}

// TestSocketActivate uses systemd-socket-activate.
func TestSocketActivate(t *testing.T) {
	t.Parallel()
	activate := required(t, "systemd-socket-activate")
	p := newPlace(t)
	address := ownHost() + ":" + instancePort
	cmd := commandOf(exec.Command(activate, append([]string{"--listen=" + address, binary}, p.args("run-server")...)...))
	cmd.start(t)
	until(t, "it answers", func() bool {
		got, err := tryGet(address, "/nix-cache-info")
		return err == nil && got.StatusCode == 200
	})
	s := &server{process: cmd}
	s.stop(t, syscall.SIGTERM)
}
