package main

import (
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"nar-herder/internal/selfsigned"
	"nar-herder/narinfo"
)

// forward makes another address for a server.
func forward(t *testing.T, to string) (address string) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	go func() {
		for {
			in, err := listener.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("tcp", to)
			if err != nil {
				in.Close()
				continue
			}
			for _, pair := range [][2]net.Conn{{in, out}, {out, in}} {
				go func() {
					_, _ = io.Copy(pair[0], pair[1])
					pair[0].Close()
					pair[1].Close()
				}()
			}
		}
	}()
	return listener.Addr().String()
}

// TestCacheCircle: caches that are each other's upstreams, or their own by another address, answer
// for unknown items at once, without many requests, and find what a farm behind them has.
func TestCacheCircle(t *testing.T) {
	t.Parallel()
	const farm, asked = -1, 100
	for name, upstreams := range map[string][][]int{
		"itself":                {{0}},
		"itself and a farm":     {{0, farm}},
		"each other":            {{1}, {0}},
		"each other and a farm": {{1}, {0, farm}},
		"three":                 {{1, 2}, {0, 2}, {0, 1}},
		"three and a farm":      {{1, 2}, {0, 2}, {0, 1, farm}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			stub := startStub(t, http.FileServer(http.Dir(filepath.Join(testdata, "published"))))
			var hosts, addresses []string
			for range upstreams {
				hosts = append(hosts, ownHost())
				addresses = append(addresses, hosts[len(hosts)-1]+":"+instancePort)
			}
			hasFarm := false
			var servers []*server
			for n, names := range upstreams {
				args := []string{"--host=" + hosts[n], "--port=" + instancePort}
				for _, other := range names {
					address := stub.address
					switch {
					case other == n:
						address = forward(t, addresses[n])
					case other != farm:
						address = addresses[other]
					default:
						hasFarm = true
					}
					args = append(args, "--upstream=http://"+address)
				}
				p := newPlace(t)
				succeed(t, "import", "--database="+p.database, "--narinfos-only", published(libgreet))
				servers = append(servers, p.serve(t, args...))
			}
			for _, address := range addresses { // some started before their upstreams
				until(t, "all upstreams are up", func() bool {
					got := get(t, address, "/metrics").body
					return strings.Contains(got, "\nnarherder_upstream_up{") && !regexp.MustCompile(`\nnarherder_upstream_up\{.*\} 0\n`).MatchString(got)
				})
			}
			requests := func() (sum float64) {
				for _, address := range addresses {
					for line := range strings.Lines(get(t, address, "/metrics").body) {
						if strings.HasPrefix(line, "narherder_http_requests_total{") && strings.Contains(line, `route="/HASH.narinfo",`) {
							_, value, _ := strings.Cut(line, "} ")
							count, err := strconv.ParseFloat(strings.TrimSpace(value), 64)
							noError(t, err)
							sum += count
						}
					}
				}
				return sum
			}
			var targets []string
			for n := range asked {
				targets = append(targets, numbered(1000+n))
			}
			const rounds = 2
			for range rounds {
				begun := time.Now()
				var asking sync.WaitGroup
				for _, address := range addresses { // which must not wait for each other
					asking.Go(func() {
						burst(t, address, targets, func(n int, got answer) { wantUnsure(t, targets[n], got) })
					})
				}
				asking.Wait()
				for _, target := range []string{"/nar/lzip/00000000000000000000000000000zzz-unknown", "/nar/00000000000000000000000000000zzz-unknown"} {
					wantUnsure(t, target, get(t, addresses[0], target))
				}
				t.Logf("it took %s", time.Since(begun))
			}
			// In each round, each item comes to each cache along each way that visits no cache
			// twice: of three, to 36 in all. Uncertain answers may have expired between rounds.
			if got, most := requests(), rounds*15*(asked+2)*len(servers); got > float64(most) {
				t.Errorf("%v requests for %d items", got, asked)
			}
			// The narinfo of one is known everywhere, and its nar is nowhere else.
			for _, base := range []string{libgreet, greeting} {
				narinfo, nar := get(t, addresses[0], "/"+narinfoName(base)), get(t, addresses[0], "/nar/lzip/"+base)
				switch {
				case hasFarm:
					if narinfo.body != read(t, published(base)) || nar.body != read(t, testdata, "published/nar/lzip", base) {
						t.Errorf("%s: %s, its nar %s", base, narinfo.Status, nar.Status)
					}
				case base == libgreet:
					if narinfo.StatusCode != 200 || nar.StatusCode == 200 {
						t.Errorf("%s: %s, its nar %s", base, narinfo.Status, nar.Status)
					}
				default:
					wantUnsure(t, base, narinfo)
					wantUnsure(t, "nar of "+base, nar)
				}
			}
			for _, s := range servers {
				s.stop(t, syscall.SIGTERM)
			}
		})
	}
}

// lies are wrong answers to requests for nars. All but those of streamed ones can be noticed
// before anything is sent to a client.
var lies = map[string]struct {
	base       string
	answer     func(w http.ResponseWriter, nar []byte, private string)
	isStreamed bool
}{
	"another nar": {greeting, func(w http.ResponseWriter, nar []byte, _ string) {
		_, _ = w.Write(append([]byte("x"), nar...))
	}, false},
	"garbage of the size": {gofmtBase, func(w http.ResponseWriter, nar []byte, _ string) {
		wrong := bytes.Clone(nar)
		wrong[len(wrong)/2] ^= 1
		_, _ = w.Write(wrong)
	}, true},
	"small garbage of the size": {deepTree, func(w http.ResponseWriter, nar []byte, _ string) {
		_, _ = w.Write(bytes.Repeat([]byte("x"), len(nar)))
	}, true},
	"HTML": {libgreet, func(w http.ResponseWriter, nar []byte, _ string) {
		w.Header().Set("Content-Type", "text/html")
		_, _ = io.WriteString(w, "<!DOCTYPE html><html>Welcome to the captive portal</html>")
	}, false},
	"endless": {greet, func(w http.ResponseWriter, nar []byte, _ string) {
		chunk := make([]byte, 64<<10)
		for err := error(nil); err == nil; _, err = w.Write(chunk) {
		}
	}, true},
	"more than announced": {empty, func(w http.ResponseWriter, nar []byte, _ string) {
		w.(http.Flusher).Flush()
		_, _ = w.Write(append(nar, 0))
	}, true},
	"cut": {entropy, func(w http.ResponseWriter, nar []byte, _ string) {
		w.Header().Set("Content-Length", strconv.Itoa(len(nar)))
		_, _ = w.Write(nar[:len(nar)/2])
	}, true},
	"to loopback": {profile, func(w http.ResponseWriter, nar []byte, private string) {
		w.Header().Set("Location", private+"/secret")
		w.WriteHeader(http.StatusFound)
	}, false},
	"to a file": {"2y8b79q71l3w1d9kh7i1b5al0mlahnd3-odd_name-1.0+x=y?z", func(w http.ResponseWriter, nar []byte, _ string) {
		w.Header().Set("Location", "file:///etc/passwd")
		w.WriteHeader(http.StatusMovedPermanently)
	}, false},
	"in a circle": {plus, func(w http.ResponseWriter, nar []byte, _ string) {
		w.Header().Set("Location", "/nar/lzip/"+plus)
		w.WriteHeader(http.StatusFound)
	}, false},
}

// TestCacheLies: no lie of an upstream about a nar reaches a client as a complete answer, or is
// stored. Another upstream that has the nar helps.
func TestCacheLies(t *testing.T) {
	t.Parallel()
	corpus := filepath.Join(testdata, "published")
	files := http.FileServer(http.Dir(corpus))
	var privately atomic.Int32
	private := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { privately.Add(1) }))
	t.Cleanup(private.Close)
	differs := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !strings.HasPrefix(r.URL.Path, "/nar/") {
			files.ServeHTTP(w, r)
			return
		}
		other := bytes.Repeat([]byte{'y'}, len(read(t, corpus, r.URL.Path)))
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(other))
	}))
	t.Cleanup(differs.Close)
	for name, second := range map[string]string{"alone": "", "another has it": filesOf(t, corpus).URL, "another has a different file": differs.URL} {
		for _, how := range []struct{ withStorage, decodedFirst bool }{{true, false}, {false, false}, {false, true}} {
			withStorage, decodedFirst := how.withStorage, how.decodedFirst
			t.Run(fmt.Sprintf("%s, storage %v, decoded first %v", name, withStorage, decodedFirst), func(t *testing.T) {
				t.Parallel()
				var told sync.Map // base → true
				liar := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					for _, lie := range lies {
						if base, ok := strings.CutPrefix(r.URL.Path, "/nar/lzip/"); ok && base == lie.base {
							if r.Method == http.MethodGet {
								told.Store(base, true)
							}
							lie.answer(w, []byte(read(t, corpus, r.URL.Path)), private.URL)
							return
						}
					}
					files.ServeHTTP(w, r)
				}))
				t.Cleanup(liar.Close)
				p := newPlace(t)
				args := []string{"--upstream=" + liar.URL}
				if second != "" {
					args = append(args, "--upstream="+second)
				}
				if !withStorage {
					args = append(args, "--storage=")
				}
				s := p.serve(t, args...)
				for what, lie := range lies {
					text := read(t, published(lie.base))
					if got := get(t, s.addresses[0], "/"+narinfoName(lie.base)); got.body != text {
						t.Fatalf("%s: %s, %s", what, got.Status, got.body)
					}
					n, _ := narOf(t, text)
					targets := []string{"/" + n.Files[0].URL, "/nar/" + strings.TrimPrefix(n.Files[0].URL, "nar/lzip/")}
					if decodedFirst {
						slices.Reverse(targets)
					}
					if what == "cut" { // several attempts for each request take seconds
						targets = targets[:1]
					}
					for round := range 2 {
						for _, target := range targets {
							// While the liar rests after another lie, it isn't asked.
							_, wasTold := told.Load(lie.base)
							wantTruth(t, fmt.Sprintf("%s, %s, round %d", what, target, round), s.addresses[0], target, n,
								second != "" && second != differs.URL && (!lie.isStreamed || wasTold))
						}
					}
				}
				s.stop(t, syscall.SIGTERM)
				if withStorage {
					succeed(t, p.args("check", "--verify", "--no-closures")...)
				}
			})
		}
	}
	t.Cleanup(func() {
		if n := privately.Load(); n > 0 {
			t.Errorf("%d requests have followed a redirect to loopback", n)
		}
	})
}

// wantTruth requests a nar. The answer is right, or an error that clients notice. It must be right
// if certain is set.
func wantTruth(t *testing.T, what, address, target string, n *narinfo.Narinfo, certain bool) {
	t.Helper()
	begun := time.Now()
	got, err := tryGet(address, target)
	if took := time.Since(begun); took > patience {
		t.Errorf("%s: it took %s", what, took)
	}
	switch {
	case err == nil && got.StatusCode == 200 && strings.HasPrefix(target, "/nar/lzip/"):
		checkDecompressed(t, what, n, got.body, required(t, "lzip"), "-dc")
	case err == nil && got.StatusCode == 200:
		checkNar(t, what, n, got.body)
	case certain:
		t.Errorf("%s: %v, %v", what, got.Response, err)
	case err == nil && got.StatusCode < 500:
		t.Errorf("%s: %s, %v", what, got.Status, got.Header)
	}
}

// TestCacheCertificate: the certificate of an upstream that has expired is refused with its
// reason, and another upstream helps.
func TestCacheCertificate(t *testing.T) {
	t.Parallel()
	corpus := filepath.Join(testdata, "published")
	for name, until := range map[string]time.Duration{"valid": time.Hour, "expired": -time.Minute} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			certificate, err := selfsigned.New(time.Now().Add(-time.Hour), time.Now().Add(until), "127.0.0.1")
			noError(t, err)
			p := newPlace(t)
			authorities := filepath.Join(p.dir, "ca.pem")
			noError(t, os.WriteFile(authorities, certificate.ChainPEM, 0o644))
			secure := httptest.NewUnstartedServer(http.FileServer(http.Dir(corpus)))
			secure.TLS = &tls.Config{Certificates: []tls.Certificate{certificate.Certificate}}
			secure.Config.ErrorLog = log.New(io.Discard, "", 0)
			secure.StartTLS()
			t.Cleanup(secure.Close)
			start := func(p place, more ...string) *server {
				process := command(p.serverArgs(append([]string{"--upstream=" + secure.URL}, more...)...)...)
				process.Env = append(process.Env, "SSL_CERT_FILE="+authorities)
				return serve(t, process)
			}
			alone, both := start(p), start(newPlace(t), "--upstream="+filesOf(t, corpus).URL)
			if name == "valid" {
				wantFetched(t, alone.addresses[0], corpus, greeting, gofmtBin)
			} else {
				for _, target := range []string{"/" + narinfoName(greeting), "/nar/lzip/" + greeting} {
					if got := get(t, alone.addresses[0], target); got.StatusCode != http.StatusBadGateway {
						t.Errorf("%s: %s", target, got.Status)
					}
				}
				what := "the health names the reason"
				poll(t, what, patience, longestPause, func() bool { return strings.Contains(get(t, alone.addresses[0], "/health").body, "expired") })
				if !strings.Contains(alone.err.String(), "expired") {
					t.Error("the log lacks the reason")
				}
			}
			wantFetched(t, both.addresses[0], corpus, greeting, gofmtBin)
			for _, s := range []*server{alone, both} {
				s.stop(t, syscall.SIGTERM)
			}
		})
	}
}
