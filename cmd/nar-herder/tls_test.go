package main

import (
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"nar-herder/internal/selfsigned"
)

// pair is a certificate for 127.0.0.1 and its key, in files.
type pair struct{ certificate, key string }

func newPair(t testing.TB, until time.Time) pair {
	t.Helper()
	dir := t.TempDir()
	p := pair{filepath.Join(dir, "chain.pem"), filepath.Join(dir, "key.pem")}
	p.renew(t, until)
	return p
}

// options are the options of a server with HTTPS.
func (p pair) options(more ...string) []string {
	return append([]string{"--tls-certificate=" + p.certificate, "--tls-key=" + p.key, "--tls-port=0"}, more...)
}

// renew replaces both files, and returns the serial number of the new certificate.
func (p pair) renew(t testing.TB, until time.Time) (serial int64) {
	t.Helper()
	made, err := selfsigned.New(time.Now().Add(-time.Hour), until, "127.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	if err := made.Write(p.certificate+".new", p.key+".new"); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{p.certificate, p.key} {
		if err := os.Rename(name+".new", name); err != nil {
			t.Fatal(err)
		}
	}
	return made.Leaf.SerialNumber.Int64()
}

var listeningTLS = regexp.MustCompile(`msg=listening address=(\S+) tls=true`)

// tlsAddress returns the address on which a server speaks HTTPS.
func (s *server) tlsAddress(t testing.TB) string {
	t.Helper()
	match := listeningTLS.FindStringSubmatch(s.err.String())
	if match == nil {
		t.Fatalf("no HTTPS: %s", s.err.String())
	}
	return match[1]
}

// gnutls sends requests with GnuTLS, as Guix does, and returns the answers. The last request must
// close the connection.
func gnutls(t *testing.T, address, authority, requests string) []byte {
	t.Helper()
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		t.Fatal(err)
	}
	client := exec.Command(required(t, "gnutls-cli"), "--x509cafile="+authority, "--logfile="+filepath.Join(t.TempDir(), "log"), "--port="+port, host)
	client.Stdin = strings.NewReader(requests)
	var out, errors bytes.Buffer
	client.Stdout, client.Stderr = &out, &errors
	// A connection that ends without close_notify is an error.
	if err := client.Run(); err != nil {
		t.Fatalf("%v: %s", err, errors.String())
	}
	return out.Bytes()
}

// TestTLS gets the same over HTTP and HTTPS, with the libraries of clients.
func TestTLS(t *testing.T) {
	t.Parallel()
	const size = 100 << 20
	curl := required(t, "curl")
	p, directory, large := coldNar(t, size)
	p.imports(t, directory, published(greeting))
	files := newPair(t, time.Now().Add(90*24*time.Hour))
	s := p.serveProcess(t, files.options("--log-level=INFO")...)
	plain, address := s.addresses[0], s.tlsAddress(t)
	stored, err := os.ReadFile(filepath.Join(p.storage, large))
	if err != nil || len(stored) != size {
		t.Fatalf("%d bytes, %v", len(stored), err)
	}
	curled := func(args ...string) []byte {
		t.Helper()
		client := exec.Command(curl, append([]string{"--silent", "--show-error", "--fail", "--cacert", files.certificate}, args...)...)
		client.Stderr = os.Stderr
		got, err := client.Output()
		if err != nil {
			t.Fatalf("curl %q: %v", args, err)
		}
		return got
	}

	for _, version := range []string{"1.2", "1.3"} {
		if got := curled("--tls-max", version, "https://"+address+large); !bytes.Equal(got, stored) {
			t.Errorf("%s: another nar of %d bytes", version, len(got))
		}
	}
	if got := curled("--range", "1048576-1048591", "https://"+address+large); !bytes.Equal(got, stored[1<<20:1<<20+16]) {
		t.Errorf("range: %q", got)
	}
	head := string(curled("--head", "https://"+address+large))
	if !strings.Contains(head, "200 OK") || !strings.Contains(head, fmt.Sprintf("Content-Length: %d", size)) {
		t.Errorf("HEAD: %q", head)
	}
	if got := exec.Command(curl, "--silent", "--cacert", files.certificate, "--tls-max", "1.1", "https://"+address+"/").Run(); got == nil {
		t.Error("TLS 1.1 is accepted")
	}

	// All requests of the burst are written before the first answer is read.
	target := "/" + narinfoName(greeting)
	request := func(target, more string) string {
		return "GET " + target + " HTTP/1.1\r\nHost: herder.example\r\n" + more + "\r\n"
	}
	const burst = 1000
	answers := gnutls(t, address, files.certificate, strings.Repeat(request(target, ""), burst-1)+request(target, "Connection: close\r\n"))
	if got := strings.Count(string(answers), get(t, plain, target).body); got != burst {
		t.Errorf("%d answers of %d", got, burst)
	}
	// Debian's wget uses GnuTLS. (gnutls-cli writes each byte on its own.)
	if got, err := exec.Command(required(t, "wget"), "--quiet", "--ca-certificate="+files.certificate, "--output-document=-", "https://"+address+large).Output(); err != nil || !bytes.Equal(got, stored) {
		t.Errorf("wget: another nar of %d bytes, %v", len(got), err)
	}

	if got := get(t, address, "/nix-cache-info"); got.StatusCode != http.StatusBadRequest || !strings.Contains(got.body, "https://") {
		t.Errorf("HTTP instead of HTTPS: %s", got.Status)
	}
	s.stop(t, syscall.SIGTERM)
}

// TestTLSRenewal replaces the certificate while clients connect, and then by a wrong one.
func TestTLSRenewal(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	p.imports(t, published(greeting))
	files := newPair(t, time.Now().Add(24*time.Hour))
	s := p.serveProcess(t, files.options("--log-level=INFO")...)
	address := s.tlsAddress(t)
	connect := func() (serial int64, err error) {
		conn, err := tls.Dial("tcp", address, &tls.Config{InsecureSkipVerify: true})
		if err != nil {
			return 0, err
		}
		defer conn.Close()
		if _, err := io.WriteString(conn, "GET /nix-cache-info HTTP/1.0\r\n\r\n"); err != nil {
			return 0, err
		}
		answer, err := io.ReadAll(conn)
		if err != nil || !strings.Contains(string(answer), "StoreDir") {
			return 0, fmt.Errorf("%q, %w", answer, err)
		}
		return conn.ConnectionState().PeerCertificates[0].SerialNumber.Int64(), nil
	}
	has := func(serial int64) func() bool {
		return func() bool {
			got, err := connect()
			if err != nil {
				t.Error(err)
			}
			return got == serial
		}
	}
	warns := func() bool { return strings.Contains(get(t, s.addresses[0], "/health").body, "tls_certificate") }
	expiry := func() string { return metric(t, s.addresses[0], "narherder_tls_certificate_expiry_timestamp_seconds") }

	var stop atomic.Bool
	var clients sync.WaitGroup
	for range 4 {
		clients.Go(func() {
			for !stop.Load() {
				if _, err := connect(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	before := expiry()
	for range 5 {
		serial := files.renew(t, time.Now().Add(90*24*time.Hour))
		if err := s.Process.Signal(syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
		until(t, "the new certificate is used after SIGHUP", has(serial))
	}
	stop.Store(true)
	clients.Wait()
	if after := expiry(); after == before {
		t.Errorf("expires at %s", after)
	}

	serial := files.renew(t, time.Now().Add(90*24*time.Hour))
	until(t, "the new certificate is used without SIGHUP", has(serial))
	right := read(t, files.key)
	other := newPair(t, time.Now().Add(24*time.Hour))
	write(t, files.key, read(t, other.key))
	until(t, "the health warns about a wrong key", warns)
	if !has(serial)() || !strings.Contains(s.err.String(), "is not the key of") {
		t.Errorf("with a wrong key: %s", s.err.String())
	}
	if got := get(t, s.addresses[0], "/health"); got.StatusCode != http.StatusOK || strings.Contains(got.body, files.key) {
		t.Errorf("%s: %s", got.Status, got.body)
	}
	write(t, files.key, right)
	until(t, "the health is good again", func() bool { return !warns() })

	serial = files.renew(t, time.Now().Add(time.Minute))
	until(t, "the expiring certificate is used", has(serial))
	until(t, "the health warns about the expiry", warns)
	if !strings.Contains(s.err.String(), `level=WARN msg="the TLS certificate expires at`) {
		t.Error("the log doesn't warn")
	}
	s.stop(t, syscall.SIGTERM)
}

// TestTLSSource mirrors and caches a server over HTTPS.
func TestTLSSource(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	p.imports(t, published(greeting))
	files := newPair(t, time.Now().Add(24*time.Hour))
	source := p.serve(t, files.options()...)
	url := "https://" + source.tlsAddress(t)
	for _, option := range []string{"--mirror=", "--upstream="} {
		q := newPlace(t)
		succeed(t, "import", "--narinfos-only", "--database="+q.database, published(greeting))
		process := command(q.serverArgs(option + url)...)
		process.Env = append(process.Env, "SSL_CERT_FILE="+files.certificate)
		s := serve(t, process)
		until(t, option+" has the nar", func() bool {
			return get(t, s.addresses[0], "/nar/lzip/"+greeting).body == read(t, p.storage, "nar/lzip", greeting)
		})
		s.stop(t, syscall.SIGTERM)
	}
	source.stop(t, syscall.SIGTERM)
}

// TestTLSOptions gives options that contradict each other, and files that can't be used.
func TestTLSOptions(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	files, other := newPair(t, time.Now().Add(time.Hour)), newPair(t, time.Now().Add(time.Hour))
	empty := filepath.Join(p.dir, "empty")
	write(t, empty, "")
	misused := func(wanted string, options ...string) { t.Helper(); misuse(t, p.serverArgs(options...), wanted) }
	misused("needs --tls-certificate", "--tls-key="+files.key)
	misused("needs --tls-key", "--tls-certificate="+files.certificate)
	misused("needs --tls-certificate and --tls-key", "--tls-port=0")
	misused("needs --tls-port", "--tls-host=127.0.0.1")
	misused("add --tls-port", "--tls-certificate="+files.certificate, "--tls-key="+files.key)
	misused("is also --port", "--tls-certificate="+files.certificate, "--tls-key="+files.key, "--port=8734", "--tls-port=8734")
	misused("add --tls-host", files.options("--host=unix:"+filepath.Join(p.dir, "socket"))...)
	for wanted, files := range map[string]pair{
		"no such file":                           {files.certificate + "x", files.key},
		"no certificate in PEM":                  {files.key, files.key},
		"no private key in PEM":                  {files.certificate, files.certificate},
		"is not the key of --tls-certificate":    {files.certificate, other.key},
		"the file has no certificate in PEM":     {empty, files.key},
		"not a regular file: name a file":        {files.certificate, p.dir},
		"--tls-key=/dev/null: not a regular fil": {files.certificate, "/dev/null"},
	} {
		fail(t, p.serverArgs(files.options()...), wanted)
	}
}

// TestTLSSockets passes sockets as systemd does: the one named https is for HTTPS.
func TestTLSSockets(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	p.imports(t, published(greeting))
	files := newPair(t, time.Now().Add(time.Hour))
	var sockets []*os.File
	var addresses []string
	for range 2 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		file, err := l.(*net.TCPListener).File()
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		sockets, addresses = append(sockets, file), append(addresses, l.Addr().String())
	}
	environment := []string{"LISTEN_FDS=2", "LISTEN_FDNAMES=https:nar-herder.socket"}
	s := serve(t, withSockets(sockets, environment, p.args("run-server", "--tls-certificate="+files.certificate, "--tls-key="+files.key)...))
	if got := get(t, addresses[1], "/nix-cache-info"); got.StatusCode != http.StatusOK {
		t.Errorf("HTTP: %s", got.Status)
	}
	if s.tlsAddress(t) != addresses[0] {
		t.Errorf("HTTPS at %s, not %s", s.tlsAddress(t), addresses[0])
	}
	if conn, err := tls.Dial("tcp", addresses[0], &tls.Config{InsecureSkipVerify: true}); err != nil {
		t.Error(err)
	} else {
		conn.Close()
	}
	s.stop(t, syscall.SIGTERM)
}
