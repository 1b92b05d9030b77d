package main

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"nar-herder/internal/mirrortest"
	"nar-herder/narinfo"
)

const (
	// attackConnections is the number of connections for each attack, from
	// attackAddresses.
	attackConnections = 100
	attackAddresses   = 4
	// attackedVariable makes the test binary attack the address in it, until standard
	// input ends.
	attackedVariable = "NAR_HERDER_TEST_ATTACKED"

	longWindow = "0l0ngw1nd0w0l0ngw1nd0w0l0ngw1nd0-long-window"
	hugeXz     = "0hvg0xz00hvg0xz00hvg0xz00hvg0xz0-huge-dictionary"
)

// attacks are the behaviours of malicious clients. A connection repeats one until it is
// closed.
var attacks = map[string]func(c net.Conn, stop <-chan struct{}){
	"idle": func(c net.Conn, stop <-chan struct{}) { hold(c, stop) },
	"unread": func(c net.Conn, stop <-chan struct{}) {
		raw := strings.Repeat("GET /nix-cache-info HTTP/1.1\r\nHost: herder.example\r\n\r\n", 5000)
		for err := error(nil); err == nil; {
			_, err = io.WriteString(c, raw)
		}
	},
	"stream": func(c net.Conn, stop <-chan struct{}) {
		_, _ = io.WriteString(c, "GET /recent-changes/stream?after=0 HTTP/1.1\r\nHost: herder.example\r\n\r\n")
		hold(c, stop)
	},
	"announced body": func(c net.Conn, stop <-chan struct{}) {
		_, _ = io.WriteString(c, "POST / HTTP/1.1\r\nHost: herder.example\r\nContent-Length: 60000\r\n\r\n")
		hold(c, stop)
	},
	"drip": func(c net.Conn, stop <-chan struct{}) {
		for _, b := range []byte("GET / HTTP/1.1\r\nX: " + strings.Repeat("x", 4000)) {
			if _, err := c.Write([]byte{b}); err != nil {
				return
			}
			select {
			case <-stop:
				return
			case <-time.After(20 * time.Millisecond):
			}
		}
	},
	"decoder":     askFor("/nar/vwq3caqzrjacp658wz5wanfjk9z7q548-gofmt-bin-1.26"),
	"long window": askFor("/nar/" + longWindow),
	"huge xz":     askFor("/nar/" + hugeXz),
	"slow nar":    askFor("/nar/lzip/vwq3caqzrjacp658wz5wanfjk9z7q548-gofmt-bin-1.26"),
	"changes":     askFor("/recent-changes?since=2000-01-01+00:00:00"),
	// Read the answers, and pipeline as many requests as possible.
	"reading": func(c net.Conn, stop <-chan struct{}) {
		go io.Copy(io.Discard, c)
		raw := strings.Repeat("GET /00000000000000000000000000000000.narinfo HTTP/1.1\r\nHost: herder.example\r\n\r\n", 100)
		for err := error(nil); err == nil; {
			_, err = io.WriteString(c, raw)
		}
	},
}

// hold reads nothing until stop or the connection is closed.
func hold(c net.Conn, stop <-chan struct{}) {
	raw, err := c.(*net.TCPConn).SyscallConn()
	if err != nil {
		return
	}
	for {
		select {
		case <-stop:
			return
		case <-time.After(50 * time.Millisecond):
		}
		closed := false
		_ = raw.Control(func(fd uintptr) {
			poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLRDHUP}}
			n, err := unix.Poll(poll, 0)
			closed = n > 0 && err == nil
		})
		if closed {
			return
		}
	}
}

// askFor requests a path and doesn't read the answer.
func askFor(path string) func(c net.Conn, stop <-chan struct{}) {
	return func(c net.Conn, stop <-chan struct{}) {
		_, _ = io.WriteString(c, "GET "+path+" HTTP/1.1\r\nHost: herder.example\r\n\r\n")
		hold(c, stop)
	}
}

// hostileNars writes narinfos and nars that need much memory to decode.
func hostileNars(t *testing.T, dir string) {
	t.Helper()
	write := func(kind, base string, compressed, plain []byte, size int) {
		file := filepath.Join(dir, "nar", kind, base)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, compressed, 0o644); err != nil {
			t.Fatal(err)
		}
		sum := sha256.Sum256(plain)
		text := mirrortest.Sign(fmt.Appendf(nil, "StorePath: /gnu/store/%s\nURL: nar/%s/%s\nCompression: %s\nFileSize: %d\nNarHash: %s\nNarSize: %d\nReferences: \n",
			base, kind, base, kind, len(compressed), narinfo.NarHash(sum[:]), size))
		if err := os.WriteFile(filepath.Join(dir, base[:32]+".narinfo"), text, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	plain := make([]byte, 160<<20)
	for i := range len(plain) / 4096 {
		plain[i*4096] = byte(i*i>>3) | 1
	}
	pack := exec.Command(required(t, "zstd"), "-1", "--long=27", "-c")
	pack.Stdin = bytes.NewReader(plain)
	packed, err := pack.Output()
	if err != nil {
		t.Fatal(err)
	}
	write("zstd", longWindow, packed, plain, len(plain))
	// One block, with a dictionary of 4 GiB.
	write("xz", hugeXz, []byte("\xfd7zXZ\x00\x00\x00\xff\x12\xd9A\x02\x00!\x01(\x00\x00\x00\xe6\xa0\x11\xb3\x01\x00\x00x\x00\x00\x00\x00\x00\x01\x11\x01\xad\xa6X\x04\x06r\x9ez\x01\x00\x00\x00\x00\x00YZ"), []byte("x"), 1)
}

// attackers attacks an address until standard input ends. It prints a line for each
// failure.
func attackers(address string) {
	// Attackers stand for other machines, so they must not take processor time from the
	// server or the good client.
	if err := eachThread(unix.SchedAttr{Policy: unix.SCHED_IDLE}); err != nil {
		fmt.Println(err)
	}
	stop := make(chan struct{})
	var all sync.WaitGroup
	for name, attack := range attacks {
		for n := range attackConnections {
			from := fmt.Sprintf("127.0.1.%d", 1+n%attackAddresses)
			all.Go(func() {
				for {
					select {
					case <-stop:
						return
					case <-time.After(50 * time.Millisecond):
					}
					c, err := dialFrom(from, address)
					if err != nil {
						if !errors.Is(err, syscall.ECONNRESET) {
							fmt.Printf("%s: %v\n", name, err)
						}
						continue
					}
					ended := make(chan struct{})
					go func() {
						select {
						case <-stop:
							c.Close()
						case <-ended:
						}
					}()
					attack(c, stop)
					close(ended)
					c.Close()
				}
			})
		}
	}
	_, _ = io.Copy(io.Discard, os.Stdin)
	close(stop)
	all.Wait()
}

// attack starts attackers in a separate process, which end stops.
func attack(t *testing.T, address string) (end func()) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	process := exec.Command(self)
	process.Env = append(os.Environ(), attackedVariable+"="+address)
	var failures bytes.Buffer
	process.Stdout, process.Stderr = &failures, &failures
	stdin, err := process.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := process.Start(); err != nil {
		t.Fatal(err)
	}
	return sync.OnceFunc(func() {
		stdin.Close()
		if err := process.Wait(); err != nil || failures.Len() > 0 {
			t.Errorf("the attackers: %v, %s", err, failures.Bytes())
		}
	})
}
