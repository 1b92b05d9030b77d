package main

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"nar-herder/storage/index"
)

// secrets are words that must not be revealed.
type secrets struct {
	t     *testing.T
	words []string
}

// word returns a new secret.
func (s *secrets) word(of string) string {
	word := "s3cr3t-" + of
	s.words = append(s.words, word)
	return word
}

// none checks that a text has no secret in it.
func (s *secrets) none(where, text string) {
	s.t.Helper()
	for _, word := range s.words {
		if i := strings.Index(text, word); i >= 0 {
			s.t.Errorf("%s has the secret %s: …%q…", where, word, text[max(0, i-100):min(len(text), i+len(word)+20)])
		}
	}
}

// noneIn checks all files below a directory.
func (s *secrets) noneIn(dir string) {
	s.t.Helper()
	err := filepath.WalkDir(dir, func(name string, entry os.DirEntry, err error) error {
		if err == nil && entry.Type().IsRegular() {
			s.none(name, read(s.t, name))
		}
		return err
	})
	if err != nil {
		s.t.Error(err)
	}
}

// guarded is an instance behind a password. Tests can replace its handler.
type guarded struct {
	*httptest.Server
	asked   atomic.Int64 // requests with the right password
	refused atomic.Int64
	fault   atomic.Pointer[http.HandlerFunc]
}

func newGuarded(t *testing.T, target, user, password string) *guarded {
	g := new(guarded)
	to, err := url.Parse("http://" + target)
	if err != nil {
		t.Fatal(err)
	}
	proxy := httputil.NewSingleHostReverseProxy(to)
	proxy.FlushInterval = -1
	g.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if u, p, ok := r.BasicAuth(); !ok || u != user || p != password {
			g.refused.Add(1)
			http.Error(w, "no", http.StatusUnauthorized)
			return
		}
		g.asked.Add(1)
		r.Header.Del("Authorization")
		if fault := g.fault.Load(); fault != nil {
			(*fault)(w, r)
			return
		}
		proxy.ServeHTTP(w, r)
	}))
	t.Cleanup(func() {
		g.CloseClientConnections()
		g.Close()
	})
	return g
}

// url returns the instance's URL with its password.
func (g *guarded) url(user, password string) string {
	return "http://" + user + ":" + password + "@" + g.Listener.Addr().String()
}

// TestSecrets puts secrets into all options, causes many faults, and looks for the secrets
// in everything that others can read.
func TestSecrets(t *testing.T) {
	t.Parallel()
	s := &secrets{t: t}
	const user = "s3cr3t-user" // some tokens are user names
	s.words = append(s.words, user)
	// The parts are separate words, so that a truncated password is noticed.
	password := s.word("password") + "'" + s.word("quoted") + "@" + s.word("at")

	dir, texts, targets := generated(t, 20)
	origin := newPlace(t)
	origin.imports(t, dir)
	originServer := origin.serve(t, "--log-level=INFO", "--database-dump-interval=1s")
	mirrored := newGuarded(t, originServer.addresses[0], user, password)
	copied := newGuarded(t, originServer.addresses[0], user, password)

	// Servers to which it redirects must not see the password.
	var elsewhere strings.Builder
	var mu sync.Mutex
	other := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		fmt.Fprintln(&elsewhere, r.URL, r.Header)
		http.Error(w, "no", http.StatusNotFound)
	}))
	defer other.Close()

	p := newPlace(t)
	// Settings that an older version has left in the database.
	x, err := index.Open(t.Context(), p.database, index.Options{})
	if err != nil {
		t.Fatal(err)
	}
	old := s.word("old")
	for n := range 5 { // leaves some of it in SQLite's free pages
		if err := x.Update(t.Context(), func(tx *index.Tx) error {
			return tx.SetSetting("removal_relied_on", fmt.Sprintf(`["http://%s:%s@%s"%s]`, user, old, copied.Listener.Addr(), strings.Repeat(`,"http://u:`+old+`@127.0.0.1:1"`, n%3)))
		}); err != nil {
			t.Fatal(err)
		}
	}
	if err := x.Close(); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(read(t, p.database), old) {
		t.Fatal("the old secret is not in the database")
	}
	p.imports(t, dir)
	proxy := s.word("proxy")
	args := p.args("run-server", "--log-level=DEBUG", "--port=0", "--serve-remote-nars=redirect", "--database-dump-interval=1s", "--mirror-nars=none",
		"--mirror="+mirrored.url(user, password), "--allow-private-redirects", "--storage-nar-removal-criteria=stored-on="+copied.url(user, password),
		"--storage-limit=0", "--storage-check-interval=1s",
		"--enable-cached-compression=zstd", "--cached-compression-directory=zstd="+filepath.Join(p.dir, "zstd"), "--cached-compression-min-uses=1",
		"--cached-compression-nar-source="+mirrored.url(user, password))
	environment := []string{"HTTPS_PROXY=http://u:" + proxy + "@127.0.0.1:bad", "AWS_ACCESS_KEY_ID=x", "AWS_SECRET_ACCESS_KEY=" + s.word("aws")}
	var server *server
	var address string
	start := func() {
		t.Helper()
		run := command(args...)
		run.Env = append(run.Env, environment...)
		server = serve(t, run)
		address = server.addresses[0]
	}
	stop := func() {
		t.Helper()
		server.stop(t, syscall.SIGTERM)
		s.none("the log", server.err.String()+server.out.String())
	}
	start()

	// visit requests everything, and checks every answer.
	visit := func(when string) {
		t.Helper()
		all := []string{"/", "/health", "/health/ready", "/health/live", "/metrics", "/nix-cache-info", "/recent-changes", "/recent-changes?since=2000-01-01", "/latest-database-dump", "/latest-index-dump", "/nonsense"}
		for _, target := range targets[:min(len(targets), 10)] {
			n, name := narOf(t, texts[target])
			all = append(all, target, target+"/info", "/stored-nars/"+n.StorePath.Hash.String()+"?nonce=1", "/"+name, "/nar/"+n.StorePath.BaseName(), "/nar/zstd/"+n.StorePath.BaseName())
		}
		var asking sync.WaitGroup // concurrent, as some answers are slow
		for _, target := range all {
			asking.Go(func() {
				for _, method := range []string{"GET", "HEAD"} {
					got, err := ask(address, method, target, http.Header{"Accept": {"text/html,*/*"}})
					if err != nil {
						t.Errorf("%s: %s %s: %v", when, method, target, err)
						continue
					}
					s.none(when+": "+method+" "+target, fmt.Sprint(got.Status, got.Header, got.body))
				}
			})
		}
		asking.Wait()
		out := runProgram(t, "mirror-status", "http://"+address)
		s.none(when+": mirror-status", out.out+out.err)
	}

	until(t, "nars are removed by stored-on", func() bool {
		return strings.Contains(get(t, address, "/metrics").body, "narherder_stored_nars 0")
	})
	visit("when all is well")
	served := 0
	for _, target := range targets {
		n, name := narOf(t, texts[target])
		if got := get(t, address, "/"+name); got.StatusCode == 200 && int64(len(got.body)) == n.Files[0].Size {
			served++
		} else if got.StatusCode != 404 {
			t.Errorf("%s: %s, %v", name, got.Status, got.Header)
		}
	}
	if served == 0 {
		t.Error("no nar was streamed from the instance with a password")
	}
	for when, handler := range map[string]http.HandlerFunc{
		"redirected": func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, other.URL+r.URL.Path, http.StatusFound)
		},
		"redirected to itself": func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, r.URL.Path+"x?X-Amz-Signature="+password, http.StatusFound)
		},
		"redirected to https": func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "https://192.0.2.1/", http.StatusFound)
		},
		"redirected to nonsense": func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Location", "http://u:"+password+"@%zz:bad/")
			w.WriteHeader(http.StatusFound)
		},
		"unauthorized": func(w http.ResponseWriter, r *http.Request) { http.Error(w, "no", http.StatusUnauthorized) },
		"failing":      func(w http.ResponseWriter, r *http.Request) { http.Error(w, "no", http.StatusInternalServerError) },
		"nonsense":     func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "nonsense") },
		"cut": func(w http.ResponseWriter, r *http.Request) {
			conn, _, err := w.(http.Hijacker).Hijack()
			if err == nil {
				conn.Close()
			}
		},
	} {
		for _, g := range []*guarded{mirrored, copied} {
			g.fault.Store(&handler)
			g.CloseClientConnections()
		}
		visit(when)
		// After some failures, it would pause for a minute.
		stop()
		before := mirrored.asked.Load() + mirrored.refused.Load()
		start()
		until(t, when+": the mirror sends requests", func() bool { return mirrored.asked.Load()+mirrored.refused.Load() > before })
	}
	mirrored.Close()
	copied.Close()
	visit("gone")
	stop()
	if mirrored.refused.Load()+copied.refused.Load() > 0 {
		t.Error("it got a request without the password")
	}
	mu.Lock()
	defer mu.Unlock()
	if elsewhere.Len() == 0 {
		t.Error("no redirect was followed")
	}
	s.none("what another host gets", elsewhere.String())
	s.noneIn(p.dir)
	s.noneIn(origin.dir)
}

// TestSecretsOfSlips mistypes options that have secrets in them.
func TestSecretsOfSlips(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	p.imports(t, filepath.Join(testdata, "published"))
	// The parts of a password are separate words, so that a truncated one is noticed.
	for _, between := range []string{"", "'", `"`, "<", ">", `'"<>`, "@", ":"} {
		s := &secrets{t: t}
		at := s.word("user") + ":" + s.word("begin") + between + s.word("end") + "@"
		slips(t, s, p, at)
	}
	s := &secrets{t: t}
	user, password := s.word("user"), s.word("password")
	for _, args := range [][]string{
		p.args("run-server", "--mirror=http://"+user+":"+password+"/x@x.example"), p.args("run-server", "--mirror=http://"+user+" "+password+"@x.example"),
		p.args("run-server", "--mirror="+user+"@x.example"), p.args("run-server", "--mirror="+user+" "+password+"@x.example"),
		p.args("run-server", "--mirror=//"+user+":"+password+"@x.example"), p.args("run-server", "--mirror=http:"+user+":"+password+"@x.example"),
		p.args("run-server", "--mirror=http://x.example/?X-Amz-Credential="+user+"&X-Amz-Signature="+password), p.args("run-server", "--mirror=http://x.example/?sig="+password),
		p.args("run-server", "--storage-nar-removal-criteria=stored-on="+user+" "+password+"@x.example"),
		{"mirror-status", user + " " + password + "@x.example"},
	} {
		r := runProgram(t, args...)
		if r.status != statusUsage {
			t.Errorf("%q: status %d, stderr %q", args, r.status, r.err)
		}
		s.none(fmt.Sprint(args[0], " ", args[len(args)-1]), r.out+r.err)
	}
	// A nar to fetch from an unreachable instance.
	files, err := filepath.Glob(filepath.Join(p.storage, "nar", "lzip", "*greeting*"))
	if err != nil || len(files) != 1 || os.Remove(files[0]) != nil {
		t.Fatal(files, err)
	}
	r := runProgram(t, p.args("check", "--repair", "--from=http://"+user+":it's"+password+"@127.0.0.1:1")...)
	if r.status == 0 || !strings.Contains(r.out+r.err, "127.0.0.1:1") {
		t.Errorf("status %d: %s%s", r.status, r.out, r.err)
	}
	s.none("check --repair", r.out+r.err)
}

// slips passes a user and password, as in a URL, to options that refuse them.
func slips(t *testing.T, s *secrets, p place, at string) {
	t.Helper()
	for _, args := range [][]string{
		p.args("run-server", "--mirror=ftp://"+at+"x.example"), p.args("run-server", "--mirror=http://"+at), p.args("run-server", "--mirror="+at+"x.example"),
		p.args("run-server", "--mirror=http://"+at+"x.example:y"),
		p.args("run-server", "--mirror=http://"+at+"x.example/?"), p.args("run-server", "--mirror=http://"+at+"x.example/%zz"),
		p.args("run-server", "--mirorr=http://"+at+"x.example"), p.args("run-server", "http://"+at+"x.example"), p.args("run-server", at+"x.example"),
		p.args("run-server", "--storage-nar-removal-criteria=stored=http://"+at+"x.example"),
		p.args("run-server", "--storage-nar-removal-criteria=stored-on=http://"+at), p.args("run-server", "--storage-nar-removal-criteria=stored-on="+at+"x.example"),
		p.args("run-server", "--storage-nar-removal-criteria=stored-on=http://"+at+"x.example,unused-for=x"),
		p.args("run-server", "--storage-nar-removal-criteria=http://"+at+"x.example"),
		p.args("run-server", "--enable-cached-compression=zstd", "--cached-compression-directory=zstd="+p.dir+"/z", "--cached-compression-nar-source=http://"+at+"x.example/?"),
		p.args("run-server", "--enable-cached-compression=zstd", "--cached-compression-directory=zstd="+p.dir+"/z", "--cached-compression-nar-source=ftp://"+at+"x.example"),
		p.args("run-server", "--enable-cached-compression=zstd", "--cached-compression-directory=zstd="+p.dir+"/z", "--cached-compression-nar-source="+at+"x.example"),
		p.args("run-server", "--host=http://"+at+"x.example"),
		p.args("run-server", "--signing-key=http://"+at+"x.example"), p.args("run-server", "--pid-file=http://"+at+"x.example"),
		{"run-server", "--database=http://" + at + "x.example", "--storage=" + p.storage, "--port=0"},
		{"run-server", "--database=" + p.database, "--storage=S3://" + at + "x.example"}, {"run-server", "--database=" + p.database, "--storage=s3://" + at + "x.example"},
		{"run-server", "--database=" + p.database, "--storage=s3://bucket?endpoint=http://" + at + "x.example"},
		{"run-server", "--database=" + p.database, "--storage=s3://bucket?credentials=http://" + at + "x.example"},
		p.args("check", "--repair", "--from=http://"+at), p.args("check", "--from=http://"+at+"x.example/?x"), {"copy-storage", "--from=http://" + at + "x.example", "--to=" + p.storage},
		{"health", "http://" + at + "127.0.0.1:1"}, {"health", "http://" + at}, {"mirror-status", "http://" + at + "127.0.0.1:1"}, {"mirror-status", "http://" + at + "x.invalid"}, {"mirror-status", "http://" + at}, {"mirror-status", at + "x.invalid"},
	} {
		r := runProgram(t, args...)
		if r.status == 0 || r.err == "" {
			t.Errorf("%q: status %d, stderr %q", args, r.status, r.err)
		}
		s.none(fmt.Sprint(args[0], " ", args[len(args)-1]), r.out+r.err)
	}
	// config doesn't need a reachable storage or mirror.
	r := runProgram(t, "config", "--mirror=http://"+at+"x.example/", "--storage-nar-removal-criteria=stored-on=http://"+at+"x.example", "--cached-compression-nar-source=http://"+at+"x.example")
	if r.status == 0 && strings.Count(r.out, "x.example") != 3 {
		t.Errorf("config prints %s", r.out)
	}
	s.none("config", r.out+r.err)
}

// TestSecretsOfProxies sets proxy variables with passwords to invalid values.
func TestSecretsOfProxies(t *testing.T) {
	t.Parallel()
	s := &secrets{t: t}
	p := newPlace(t)
	at := "http://" + s.word("user") + ":" + s.word("begin") + "'" + s.word("end") + "@"
	file := filepath.Join(p.dir, "file")
	if err := os.WriteFile(file, []byte("[default]\naws_access_key_id = a\naws_secret_access_key = b\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for proxy, wanted := range map[string]string{
		at + "127.0.0.1:1":    "127.0.0.1:1", // where no server listens
		at + " 127.0.0.1/%zz": "x.invalid",   // not a URL, so it is ignored
		"CGI":                 "HTTP_PROXY",
	} {
		environment := []string{"HTTP_PROXY=" + proxy}
		if proxy == "CGI" {
			environment = []string{"HTTP_PROXY=" + at + "127.0.0.1:1", "REQUEST_METHOD=GET"}
		}
		for _, args := range [][]string{
			{"mirror-status", "http://x.invalid"},
			{"copy-storage", "--database=none", "--to=" + p.storage, "--from=s3://bucket/prefix?region=x&path-style=true&endpoint=http://x.invalid&credentials=" + file},
		} {
			r := runIn(t, environment, args...)
			if r.status == 0 || !strings.Contains(r.err, wanted) {
				t.Errorf("%q: status %d, stderr %q", args, r.status, r.err)
			}
			s.none(fmt.Sprint(args), r.out+r.err)
		}
	}
}
