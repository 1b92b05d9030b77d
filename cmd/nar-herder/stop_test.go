package main

import (
	"bufio"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"nar-herder/internal/s3server"
	"nar-herder/internal/testlog"
)

// stopLimit is the longest time in which a program must stop: the Shepherd kills it after
// five seconds.
const stopLimit = 3 * time.Second

// wantStopped sends the signal to a process, and asserts that it ends in time.
func wantStopped(t *testing.T, p *process, signal os.Signal, status int) {
	t.Helper()
	sent := time.Now()
	if err := p.Process.Signal(signal); err != nil {
		t.Fatal(err)
	}
	got := p.wait(t)
	took := time.Since(sent)
	if took > stopLimit {
		t.Errorf("stopped after %v, want at most %v", took, stopLimit)
	}
	if got != status {
		t.Errorf("exit status %d, want %d", got, status)
	}
	t.Logf("stopped within %v", took)
}

// lockDatabase takes the write lock of a database, like another process, until the end of
// the test or until unlock is called. The statement begins the transaction.
func lockDatabase(t *testing.T, name, begin string) (unlock func()) {
	t.Helper()
	db, err := sql.Open("sqlite", name+"?_pragma=busy_timeout(60000)")
	if err != nil {
		t.Fatal(err)
	}
	conn, err := db.Conn(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := conn.ExecContext(context.Background(), begin); err != nil {
		t.Fatal(err)
	}
	unlock = func() {
		conn.Close()
		db.Close()
	}
	t.Cleanup(unlock)
	return unlock
}

// TestStopWhileLocked stops a server while another process has the write lock of the
// database, clients download nars, and usage counts are not written yet.
func TestStopWhileLocked(t *testing.T) {
	t.Parallel()
	for _, signal := range []os.Signal{syscall.SIGTERM, os.Interrupt} {
		p := newPlace(t)
		p.imports(t, published(gosrc), published(entropy))
		s := p.serveProcess(t, "--ttl=1s", "--storage-check-interval=1s", "--storage-limit=0",
			"--storage-nar-removal-criteria=unreferenced", "--enable-cached-compression=zstd:19",
			"--cached-compression-min-uses=1", "--cached-compression-directory=zstd="+filepath.Join(p.dir, "cached"))
		lockDatabase(t, p.database, "BEGIN IMMEDIATE")
		download(t, s.addresses[0], "/nar/lzip/"+gosrc)
		download(t, s.addresses[0], "/nar/lzip/"+entropy)
		wantStopped(t, s.process, signal, 0)
		if log := s.err.String(); !strings.Contains(log, "uses=2") || !strings.HasSuffix(log, "msg=stopped\n") {
			t.Errorf("the log doesn't say how many uses were lost, or is incomplete: %s", tail(log))
		}
	}
}

// TestStopWithHangingBucket stops a server while its bucket hangs, the database is locked,
// clients download, and items are being removed.
func TestStopWithHangingBucket(t *testing.T) {
	t.Parallel()
	for _, locked := range []string{"by another process", "by the removal"} {
		t.Run(locked, func(t *testing.T) {
			t.Parallel()
			bucket := s3server.New(t)
			line := newLine(t, bucket.Address)
			p := newPlace(t)
			p.storage = strings.Replace(bucket.URL("nars"), url.QueryEscape(bucket.Address), url.QueryEscape(line.address), 1)
			p.imports(t, published(gosrc), published(entropy), published(greeting))
			s := p.serveProcess(t, "--ttl=0s", "--storage-check-interval=1s")
			download(t, s.addresses[0], "/nar/lzip/"+gosrc)
			if locked == "by the removal" {
				line.hangAt("DELETE ")
				succeed(t, p.args("remove", greeting)...)
				until(t, "the removal hangs", func() bool { return line.held() > 0 })
				if n := count(t, p.database, "SELECT count(*) FROM leftovers"); n == 0 {
					t.Error("no pending delete is recorded")
				}
			} else {
				line.hangAt("")
				lockDatabase(t, p.database, "BEGIN IMMEDIATE")
			}
			before := line.held()
			for _, target := range []string{"/nar/lzip/" + entropy, "/health", "/nar/" + entropy} {
				conn, err := net.Dial("tcp", s.addresses[0])
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { conn.Close() })
				if _, err := io.WriteString(conn, "GET "+target+" HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
					t.Fatal(err)
				}
			}
			until(t, "the requests hang", func() bool { return line.held() >= before+3 })
			wantStopped(t, s.process, syscall.SIGTERM, 0)
			if log := s.err.String(); !strings.HasSuffix(log, "msg=stopped\n") || strings.Contains(log, "without waiting") {
				t.Errorf("the log has no clean end: %s", tail(log))
			}
		})
	}
}

// line forwards connections to an address until it hangs. Then they stay open, and no bytes
// are forwarded.
type line struct {
	address string
	ended   chan struct{}

	mu             sync.Mutex
	armed, hanging bool
	trigger        string
	holds          int
}

func newLine(t *testing.T, target string) *line {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := &line{address: listener.Addr().String(), ended: make(chan struct{})}
	var passing sync.WaitGroup
	passing.Go(func() {
		for {
			from, err := listener.Accept()
			if err != nil {
				return
			}
			to, err := net.Dial("tcp", target)
			if err != nil {
				from.Close()
				continue
			}
			passing.Go(func() { l.pass(to, from, true) })
			passing.Go(func() { l.pass(from, to, false) })
			context.AfterFunc(t.Context(), func() {
				from.Close()
				to.Close()
			})
		}
	})
	t.Cleanup(func() { // runs after the context has ended
		listener.Close()
		close(l.ended)
		passing.Wait()
	})
	return l
}

// hangAt makes the line hang as soon as a client sends bytes that begin with the text.
func (l *line) hangAt(trigger string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.armed, l.trigger = true, trigger
}

// held returns the number of connections with bytes that are not forwarded.
func (l *line) held() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.holds
}

func (l *line) pass(to, from net.Conn, isRequest bool) {
	defer to.Close()
	buffer := make([]byte, 64<<10)
	for {
		n, err := from.Read(buffer)
		if err != nil {
			return
		}
		l.mu.Lock()
		if l.armed && isRequest && strings.HasPrefix(string(buffer[:n]), l.trigger) {
			l.hanging = true
		}
		hangs := l.hanging
		if hangs {
			l.holds++
		}
		l.mu.Unlock()
		if hangs {
			<-l.ended
			return
		}
		if _, err := to.Write(buffer[:n]); err != nil {
			return
		}
	}
}

// TestStopAtStart stops programs that wait for the database at their start.
func TestStopAtStart(t *testing.T) {
	t.Parallel()
	for name, begin := range map[string]string{
		// In exclusive mode, other processes can't even read.
		"exclusive": "PRAGMA locking_mode = EXCLUSIVE; BEGIN EXCLUSIVE",
		"write":     "BEGIN IMMEDIATE",
	} {
		p := newPlace(t)
		p.imports(t, published(entropy))
		lockDatabase(t, p.database, begin)
		item := published(greeting)
		for _, args := range [][]string{
			p.args("run-server", "--port=0", "--pid-file="+filepath.Join(p.dir, "pid")),
			p.args("import", "--keep", item), p.args("remove", "--now", entropy), p.args("remove", entropy),
			{"pin", "--database=" + p.database, entropy}, p.args("check", "--repair"), p.args("claim-storage"),
			{"dump", "--database=" + p.database, "--database-dump=" + filepath.Join(p.dir, "dump.db")},
			{"migrate", "--database=" + p.database},
		} {
			if name == "write" && (args[0] == "migrate" || args[0] == "dump" || args[0] == "check" || args[0] == "claim-storage") {
				continue // they don't wait
			}
			t.Run(name+" "+strings.Join(args[:1], " "), func(t *testing.T) {
				t.Parallel()
				run := command(args...)
				run.start(t)
				until(t, "it waits for the lock", func() bool {
					select {
					case <-run.ended:
						t.Fatalf("it has ended: %s", run.err.String())
					default:
					}
					return isOpen(t, run.Process.Pid, p.database)
				})
				want := 1
				switch args[0] {
				case "run-server":
					want = 0
				case "check":
					want = 2
				}
				wantStopped(t, run, syscall.SIGTERM, want)
				if stderr := run.err.String(); want != 0 && (!strings.HasPrefix(stderr, "nar-herder: ") || strings.Count(stderr, "\n") > 2) {
					t.Errorf("stderr: %s", stderr)
				}
				if _, err := os.Stat(filepath.Join(p.dir, "pid")); err == nil && args[0] == "run-server" {
					t.Error("the pid file is left")
				}
			})
		}
	}
}

// TestAnswersAtStart: a server that waits for the database at its start answers, on a
// connection that it keeps afterwards.
func TestAnswersAtStart(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	p.imports(t, published(greeting))
	unlock := lockDatabase(t, p.database, "PRAGMA locking_mode = EXCLUSIVE; BEGIN EXCLUSIVE")
	socket := filepath.Join(p.dir, "socket")
	s := command(p.args("run-server", "--host=unix:"+socket)...)
	s.start(t)
	var conn net.Conn
	until(t, "the server accepts connections", func() (ok bool) {
		var err error
		conn, err = net.Dial("unix", socket)
		return err == nil
	})
	defer conn.Close()
	answers := bufio.NewReader(conn)
	get := func(path string) answer {
		t.Helper()
		_ = conn.SetDeadline(time.Now().Add(patience))
		if _, err := io.WriteString(conn, "GET "+path+" HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		response, err := http.ReadResponse(answers, nil)
		if err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		body, err := io.ReadAll(response.Body)
		if err != nil || response.Close {
			t.Fatalf("%s: %v, closes: %v", path, err, response.Close)
		}
		return answer{response, string(body)}
	}
	if got := get("/health/live"); got.StatusCode != 200 {
		t.Errorf("/health/live: %s", got.Status)
	}
	if got := get("/health"); got.StatusCode != 503 || !strings.Contains(got.body, `"starting"`) {
		t.Errorf("/health: %s %s", got.Status, got.body)
	}
	if got := get("/" + narinfoName(greeting)); got.StatusCode != 503 || got.Header.Get("Retry-After") == "" {
		t.Errorf("a narinfo: %s", got.Status)
	}
	if strings.Contains(s.err.String(), "msg=listening") {
		t.Error("it didn't wait for the database")
	}
	unlock()
	until(t, "it serves", func() bool { return get("/"+narinfoName(greeting)).StatusCode == 200 })
	wantStopped(t, s, syscall.SIGTERM, 0)
}

// count runs a query on a database that another process uses.
func count(t testing.TB, name, query string) (n int) {
	t.Helper()
	db, err := sql.Open("sqlite", name+"?_pragma=busy_timeout(5000)")
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if err := db.QueryRow(query).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

// isOpen reports whether a process has a file open.
func isOpen(t testing.TB, pid int, name string) bool {
	t.Helper()
	for _, fd := range must(filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))) {
		if target, err := os.Readlink(fd); err == nil && target == name {
			return true
		}
	}
	return false
}

// TestUntilStopped: a server that doesn't stop with its context.
func TestUntilStopped(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var text testlog.Buffer
		log := slog.New(slog.NewTextHandler(&text, nil))
		ctx, end := context.WithTimeout(t.Context(), time.Hour)
		defer end()
		running, _ := newTasks(ctx)
		disk := make(chan struct{})
		defer close(disk)
		begun := time.Now()
		err := untilStopped(ctx, log, running, func() error {
			running.Go("caching nars", func() error { <-ctx.Done(); return nil })
			running.Go("making dumps", func() error { <-disk; return nil })
			_ = running.Do("closing the cache", func() error { <-disk; return nil })
			return running.Wait()
		})
		if took := time.Since(begun); err != nil || took != time.Hour+stopTimeout {
			t.Errorf("%v after %v", err, took)
		}
		if !strings.Contains(text.String(), `level=WARN`) || !strings.Contains(text.String(), `running="closing the cache, making dumps"`) {
			t.Errorf("log: %s", text.String())
		}
	})
	failure := errors.New("no server")
	running, ctx := newTasks(t.Context())
	if err := untilStopped(ctx, slog.New(slog.DiscardHandler), running, func() error { return failure }); err != failure {
		t.Errorf("%v, want the server's own error", err)
	}
}
