package upstream_test

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"nar-herder/internal/mirrortest"
	"nar-herder/internal/testlog"
	"nar-herder/narinfo"
	"nar-herder/upstream"
)

// startNginx serves a directory with nginx, and returns its address.
func startNginx(t testing.TB, root, config string) string {
	t.Helper()
	nginx, err := exec.LookPath("nginx")
	if err != nil {
		if nginx, err = exec.LookPath("/usr/sbin/nginx"); err != nil {
			if os.Getenv("CI") == "true" {
				t.Fatal("nginx is not installed")
			}
			t.Skip("nginx is not installed")
		}
	}
	dir, err := os.MkdirTemp("", "nginx") // accessible to its workers, which run as another user
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	socket := filepath.Join(dir, "socket")
	user := ""
	if os.Getuid() == 0 {
		user = "user root;"
	}
	file := filepath.Join(dir, "nginx.conf")
	text := fmt.Sprintf(`daemon off; worker_processes 1; %s pid %s/pid; error_log stderr;
		events { worker_connections 64; }
		http {
			access_log off; default_type text/plain;
			client_body_temp_path %[2]s/body; proxy_temp_path %[2]s/proxy; fastcgi_temp_path %[2]s/fastcgi; uwsgi_temp_path %[2]s/uwsgi; scgi_temp_path %[2]s/scgi;
			server { listen unix:%s; root %s; %s }
		}`, user, dir, socket, root, config)
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	var output testlog.Buffer
	cmd := exec.Command(nginx, "-p", dir, "-e", "stderr", "-c", file)
	cmd.Stdout, cmd.Stderr = &output, &output
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		<-ended
	})
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		conn, err := net.Dial("unix", socket)
		if err == nil {
			conn.Close()
			return socket
		}
		if len(ended) > 0 || time.Now().After(deadline) {
			t.Fatalf("nginx: %v, %s", err, output.String())
		}
	}
}

// delayed returns the URL of a proxy that passes on bytes so much later, in both directions.
func delayed(t testing.TB, socket string, delay time.Duration) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	type piece struct {
		at    time.Time
		bytes []byte
	}
	pass := func(to, from net.Conn) {
		pieces := make(chan piece, 1000)
		go func() {
			defer close(pieces)
			for {
				buffer := make([]byte, 16<<10)
				n, err := from.Read(buffer)
				pieces <- piece{time.Now().Add(delay), buffer[:n]}
				if err != nil {
					return
				}
			}
		}()
		for p := range pieces {
			time.Sleep(time.Until(p.at))
			if _, err := to.Write(p.bytes); err != nil {
				break
			}
		}
		to.Close()
		from.Close()
		for range pieces {
		}
	}
	go func() {
		for {
			near, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				time.Sleep(2 * delay) // as connecting takes
				far, err := net.Dial("unix", socket)
				if err != nil {
					near.Close()
					return
				}
				go pass(near, far)
				pass(far, near)
			}()
		}
	}()
	return "http://" + l.Addr().String()
}

// items makes a directory with 1,000 items, of which the corpus is a part, and returns the text
// of each narinfo.
func items(t testing.TB) (dir string, texts map[narinfo.PathHash]string) {
	t.Helper()
	texts = make(map[narinfo.PathHash]string)
	corpus, err := filepath.Glob(filepath.Join("..", "testdata", "published", "*.narinfo"))
	if err != nil || len(corpus) == 0 {
		t.Fatal(corpus, err)
	}
	for _, name := range corpus {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		n, err := narinfo.Parse(text)
		if err != nil {
			t.Fatal(err)
		}
		texts[n.StorePath.Hash] = string(text)
	}
	for n := 0; len(texts) < 1000; n++ {
		texts[hash(n)] = string(mirrortest.Narinfo(n, 1, n).Text)
	}
	if dir, err = os.MkdirTemp("", "items"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for hash, text := range texts {
		if err := os.WriteFile(filepath.Join(dir, hash.String()+".narinfo"), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir, texts
}

// TestNginx asks for 1,000 items, with nginx's default and old limits of requests on a
// connection, or none at all.
func TestNginx(t *testing.T) {
	t.Parallel()
	dir, texts := items(t)
	for name, config := range map[string]string{
		"usual": "", "limited": "keepalive_requests 100;", "without keep-alive": "keepalive_timeout 0;", "cached": "expires 1h;",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := options(t, delayed(t, startNginx(t, dir, config), 0))
			o.SilenceTimeout, o.AnswerTimeout = time.Minute, 10*time.Minute // a connection for each item may take long
			s := open(t, o)
			unknown := hashes(1500, 1600)
			want := "absent, unsaid"
			answers := ask(t, s, append(slices.Collect(maps.Keys(texts)), unknown...))
			for _, hash := range unknown {
				if got := describe(s, answers[hash]); got != want {
					t.Fatalf("%s (%v)", got, answers[hash].Err)
				}
			}
			for hash, text := range texts {
				a := answers[hash]
				if a.Err != nil || string(a.Narinfo.Text) != text || (a.MaxAge == time.Hour) != (name == "cached") {
					t.Fatalf("%s: %v, %s", hash, a.Err, a.MaxAge)
				}
			}
		})
	}
}

// direct asks for items as Guix does: all at once over one connection.
func direct(t testing.TB, url string, hashes []narinfo.PathHash) {
	conn, err := net.Dial("tcp", strings.TrimPrefix(url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	var requests bytes.Buffer
	for _, hash := range hashes {
		fmt.Fprintf(&requests, "GET /%s.narinfo HTTP/1.1\r\nHost: x\r\n\r\n", hash)
	}
	go conn.Write(requests.Bytes())
	r := bufio.NewReader(conn)
	for range hashes {
		response, err := http.ReadResponse(r, nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, response.Body); err != nil || response.StatusCode != http.StatusOK {
			t.Fatal(response.Status, err)
		}
	}
}

// BenchmarkBurst asks for 1,000 items 50 ms away: directly as Guix does, and with and without
// open connections.
func BenchmarkBurst(b *testing.B) {
	dir, texts := items(b)
	url := delayed(b, startNginx(b, dir, ""), 25*time.Millisecond)
	all := slices.Collect(maps.Keys(texts))
	b.Run("direct", func(b *testing.B) {
		for b.Loop() {
			direct(b, url, all)
		}
	})
	askAll := func(b *testing.B, s *upstream.Set) {
		s.Ask(b.Context(), all, nil, func(hash narinfo.PathHash, a upstream.Answer) {
			if a.Err != nil {
				b.Error(errors.Unwrap(a.Err))
			}
		})
	}
	b.Run("cold", func(b *testing.B) {
		for b.Loop() {
			s := upstream.New(options(b, url))
			askAll(b, s)
			s.Close()
		}
	})
	b.Run("warm", func(b *testing.B) {
		s := upstream.New(options(b, url))
		defer s.Close()
		for b.Loop() {
			askAll(b, s)
		}
	})
}
