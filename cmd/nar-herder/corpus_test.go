package main

import (
	"crypto/sha256"
	"fmt"
	"hash"
	"io"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"nar-herder/narinfo"
)

// decompressors are the programs for the compressions.
var decompressors = map[string][]string{
	"lzip": {"lzip", "-dc"}, "zstd": {"zstd", "-dc"}, "gzip": {"gzip", "-dc"},
}

// TestCorpus serves the whole corpus, and decompresses each nar as a client does: its hash
// is the NarHash of the narinfo.
func TestCorpus(t *testing.T) {
	t.Parallel()
	programs := make(map[string]string)
	for compression, args := range decompressors {
		programs[compression] = required(t, args[0])
	}
	for directory, want := range map[string]int{"published": 13, "published-multi": 9, "published-none": 4} {
		t.Run(directory, func(t *testing.T) {
			t.Parallel()
			p := newPlace(t)
			source := filepath.Join(testdata, directory)
			p.imports(t, source)
			s := p.serveProcess(t, "--ttl=1d", "--log-level=INFO") // decodes all nars
			names, err := filepath.Glob(filepath.Join(source, "*.narinfo"))
			if err != nil || len(names) != want {
				t.Fatalf("%d narinfos, want %d, %v", len(names), want, err)
			}
			for _, name := range names {
				served := get(t, s.addresses[0], "/"+filepath.Base(name))
				if served.StatusCode != 200 || served.body != read(t, name) || served.Header.Get("Cache-Control") != "max-age=86400" {
					t.Errorf("%s: %s %v, %d bytes", name, served.Status, served.Header, len(served.body))
				}
				n, err := narinfo.Parse([]byte(served.body))
				if err != nil {
					t.Fatal(err)
				}
				if info := get(t, s.addresses[0], "/"+filepath.Base(name)+"/info"); info.body != `{"stored": true}` {
					t.Errorf("%s: info: %s %s", name, info.Status, info.body)
				}
				for _, file := range n.Files {
					path, err := file.Path()
					if err != nil {
						t.Fatal(err)
					}
					got := get(t, s.addresses[0], "/"+file.URL)
					if got.StatusCode != 200 || got.ContentLength != file.Size || got.body != read(t, source, path) {
						t.Errorf("%s: %s, length %d, want %d", file.URL, got.Status, got.ContentLength, file.Size)
					}
					if args := decompressors[file.Compression]; args != nil {
						checkDecompressed(t, file.URL, n, got.body, programs[file.Compression], args[1:]...)
					} else if file.Compression == "none" {
						checkNar(t, file.URL, n, got.body)
					} else {
						t.Errorf("%s: no program for %s", file.URL, file.Compression)
					}
				}
				// And without compression, which no narinfo lists.
				target := "/nar/" + url.PathEscape(n.StorePath.BaseName())
				got := get(t, s.addresses[0], target)
				if got.StatusCode != 200 || got.ContentLength != n.NarSize {
					t.Errorf("%s: %s, length %d", target, got.Status, got.ContentLength)
				}
				checkNar(t, target, n, got.body)
			}
			s.stop(t, syscall.SIGTERM)
		})
	}
}

func checkNar(t *testing.T, what string, n *narinfo.Narinfo, nar string) {
	t.Helper()
	hash := newNarHash()
	_, _ = io.Copy(hash, struct{ io.Reader }{strings.NewReader(nar)}) // never fails
	hash.check(t, what, n)
}

// checkDecompressed is checkNar for what a program makes of a file.
func checkDecompressed(t *testing.T, what string, n *narinfo.Narinfo, file, program string, args ...string) {
	t.Helper()
	hash := newNarHash()
	cmd := exec.Command(program, args...)
	cmd.Stdin, cmd.Stdout = strings.NewReader(file), hash
	if err := cmd.Run(); err != nil {
		t.Errorf("%s: %s: %v", what, program, err)
	}
	hash.check(t, what, n)
}

// narHash hashes a nar that is written to it. A buffer for all of the nar would be slow with
// the race detector.
type narHash struct {
	hash.Hash
	size int64
}

func newNarHash() *narHash { return &narHash{Hash: sha256.New()} }

func (h *narHash) Write(b []byte) (int, error) {
	h.size += int64(len(b))
	return h.Hash.Write(b)
}

// check compares the nar with its narinfo.
func (h *narHash) check(t *testing.T, what string, n *narinfo.Narinfo) {
	t.Helper()
	sum := h.Sum(nil)
	if h.size != n.NarSize || narinfo.EncodeBase32(sum) != strings.TrimPrefix(n.NarHash.String(), "sha256:") {
		t.Errorf("%s: %d bytes with the hash %s, want %d with %s", what, h.size, narinfo.EncodeBase32(sum), n.NarSize, n.NarHash)
	}
}

// TestNginx runs nginx in front with a configuration for the original: nginx sends the
// nars, by X-Accel-Redirect.
func TestNginx(t *testing.T) {
	t.Parallel()
	nginx := required(t, "nginx")
	p := newPlace(t)
	p.imports(t, filepath.Join(testdata, "published"))
	s := p.serve(t, "--x-accel-redirect", "--ttl=1d", "--negative-ttl=5s")
	for name, extra := range map[string]string{
		// nginx's default: HTTP/1.0.
		"HTTP 1.0": "",
		"HTTP 1.1": "proxy_http_version 1.1; proxy_set_header Connection \"\";",
		// With a URI, nginx decodes the path and encodes it again.
		"sub-path": "SUBPATH",
	} {
		t.Run(name, func(t *testing.T) {
			front, prefix := ownHost()+":"+instancePort, ""
			upstream := "proxy_pass http://herder;"
			location := "/"
			if extra == "SUBPATH" {
				prefix, location, upstream, extra = "/guix", "/guix/", "proxy_pass http://herder/;", ""
			}
			startNginx(t, nginx, front, fmt.Sprintf(`
				upstream herder { server %s; keepalive 4; }
				server {
					listen %s;
					location %s { %s %s }
					location /internal/nar/ { internal; alias %s/nar/; }
					location /internal/cached-nar/ { internal; alias /nonexistent/; }
				}`, s.addresses[0], front, location, upstream, extra, p.storage))
			for base, hash := range map[string]string{
				greeting: "", entropy: "", gosrc: "",
				"2y8b79q71l3w1d9kh7i1b5al0mlahnd3-odd_name-1.0+x=y?z": "", "mjwaskpdj87sw34j24x3fy7bmg45jckp-gtk+-2.24.33-doc": "",
				"whkpn6a94flfghyx6i6fzbvrgc3wjkk7-empty-file": "", "g699dxrv55xnrdq6z90qwfmsgz16p3xg-hello-2.10.tar.gz": "0wz7x8ngv5y6qk5w3i659y2ccawyfniixrghnr4km447cls0p45k",
			} {
				text := read(t, published(base))
				got := get(t, front, prefix+"/"+narinfoName(base))
				if got.StatusCode != 200 || got.body != text || got.Header.Get("Cache-Control") != "max-age=86400" {
					t.Errorf("%s: %s %v", base, got.Status, got.Header)
				}
				n, err := narinfo.Parse([]byte(text))
				if err != nil {
					t.Fatal(err)
				}
				path, err := n.Files[0].Path()
				if err != nil {
					t.Fatal(err)
				}
				for _, target := range []string{n.Files[0].URL, strings.ReplaceAll(path, "?", "%3f")} { // encoded fully, and as little as possible
					got := get(t, front, prefix+"/"+target)
					if got.StatusCode != 200 || got.body != read(t, p.storage, path) || got.ContentLength != n.Files[0].Size {
						t.Errorf("%s: %s %v, %d bytes", target, got.Status, got.Header, len(got.body))
					}
					if !strings.Contains(got.Header.Get("Server"), "nginx") || got.Header.Get("X-Accel-Redirect") != "" {
						t.Errorf("%s: header %v", target, got.Header)
					}
				}
				if n.NarSize < 1<<20 {
					got = get(t, front, prefix+"/nar/"+url.PathEscape(base))
					checkNar(t, base, n, got.body)
				}
				if hash != "" {
					_, name, _ := strings.Cut(base, "-")
					if got := get(t, front, prefix+"/file/"+name+"/sha256/"+hash); got.StatusCode != 200 || got.body != read(t, p.storage, path)[96:96+1329] {
						t.Errorf("/file/: %s, %d bytes", got.Status, len(got.body))
					}
				}
			}
			for target, want := range map[string]int{
				"/00000000000000000000000000000000.narinfo": 404, "/nar/lzip/00000000000000000000000000000000-x": 404, "/nix-cache-info": 200, "/": 404,
			} {
				if got := get(t, front, prefix+target); got.StatusCode != want {
					t.Errorf("%s: %s, want %d", target, got.Status, want)
				}
			}
			if got := get(t, front, "/internal/nar/lzip/"+greeting); got.StatusCode != 404 {
				t.Errorf("the internal location is open: %s", got.Status)
			}
		})
	}
}

// startNginx runs nginx in the foreground with a new directory.
func startNginx(t *testing.T, nginx, address, config string) (stop func()) {
	t.Helper()
	cmd := commandOf(exec.Command(nginx, nginxArguments(t, config)...))
	cmd.start(t)
	// This runs before the process is killed, so that nginx ends its worker.
	stop = sync.OnceFunc(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		cmd.wait(t)
	})
	t.Cleanup(stop)
	until(t, "nginx answers", func() bool {
		select {
		case <-cmd.ended:
			t.Fatalf("nginx has ended: %s", cmd.err.String())
		default:
		}
		_, err := tryGet(address, "/")
		return err == nil
	})
	return stop
}

// checkNginx checks the http block with 'nginx -t', which must have nothing to warn of.
func checkNginx(t *testing.T, nginx, config string) {
	t.Helper()
	out, err := exec.Command(nginx, append(nginxArguments(t, config), "-t", "-q")...).CombinedOutput()
	if err != nil || len(out) > 0 {
		t.Errorf("nginx -t: %v: %s", err, out)
	}
}

// nginxArguments returns the arguments of nginx with an http block.
func nginxArguments(t *testing.T, config string) []string {
	t.Helper()
	dir, err := os.MkdirTemp("", "nginx") // accessible to its workers, which run as another user
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	user := ""
	if os.Getuid() == 0 {
		user = "user root;"
	}
	config = fmt.Sprintf(`daemon off; worker_processes 1; %s pid %s/pid; error_log stderr;
		events { worker_connections 64; }
		http {
			access_log off; default_type application/octet-stream;
			client_body_temp_path %[2]s/body; proxy_temp_path %[2]s/proxy; fastcgi_temp_path %[2]s/fastcgi; uwsgi_temp_path %[2]s/uwsgi; scgi_temp_path %[2]s/scgi;
			%s
		}`, user, dir, config)
	file := filepath.Join(dir, "nginx.conf")
	if err := os.WriteFile(file, []byte(config), 0o644); err != nil {
		t.Fatal(err)
	}
	return []string{"-p", dir, "-e", "stderr", "-c", file}
}
