package main

import (
	"errors"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
)

// TestOptions gives every option of the service definition of Guix, in both forms, and the
// new options.
func TestOptions(t *testing.T) {
	t.Parallel()
	for _, form := range []string{"=", " "} {
		p := newPlace(t)
		key := filepath.Join(p.dir, "key.pub")
		if err := os.WriteFile(key, []byte(publicKey(t, "main.pub")), 0o644); err != nil {
			t.Fatal(err)
		}
		args := []string{"run-server"}
		for _, option := range [][2]string{
			{"host", "127.0.0.1"}, {"port", "0"}, {"pid-file", filepath.Join(p.dir, "pid")},
			{"database", p.database}, {"database-dump", filepath.Join(p.dir, "dump.db")}, {"database-dump-interval", "none"},
			{"storage", p.storage}, {"storage-limit", "10GiB"}, {"storage-minimum-free-space", "1MiB"},
			{"storage-nar-removal-criteria", "stored-on=https://one.example"},
			{"storage-nar-removal-criteria", "stored-on=http://two.example:8080/guix/"},
			{"mirror", "https://mirror.example/"},
			{"ttl", "30d"}, {"new-ttl", "2h"}, {"negative-ttl", "5s"}, {"log-level", "INFO"},
			{"enable-cached-compression", "zstd:19"}, {"enable-cached-compression", "lzip"},
			{"cached-compression-directory", "zstd=" + p.dir + "/z,s"}, {"cached-compression-directory", "lzip=" + p.dir + "/lzip"},
			{"cached-compression-directory-max-size", "zstd=1000000"}, {"cached-compression-directory-max-size", "lzip=none"},
			{"cached-compression-unused-removal-duration", "zstd=7d"},
			{"cached-compression-ttl", "zstd=1w"}, {"cached-compression-new-ttl", "zstd=1m"},
			{"cached-compression-min-uses", "7"}, {"cached-compression-workers", "4"}, {"cached-compression-nar-source", "https://nars.example"},
			{"signing-key", key}, {"narinfo-cache-size", "16MiB"},
			{"storage-cache", filepath.Join(p.dir, "cache")}, {"storage-cache-size", "100MiB"},
			{"mirror-nars", "on-demand"}, {"mirror-fetchers", "8"}, {"mirror-bandwidth", "2MB"},
		} {
			if form == "=" {
				args = append(args, "--"+option[0]+"="+option[1])
			} else {
				args = append(args, "--"+option[0], option[1])
			}
		}
		succeed(t, "import", "--narinfos-only", "--database="+p.database, p.dir) // so that the mirror need not bootstrap
		s := serve(t, within(args...))
		if got := get(t, s.addresses[0], "/nix-cache-info"); got.StatusCode != 200 {
			t.Errorf("%s", got.Status)
		}
		if got := get(t, s.addresses[0], "/00000000000000000000000000000000.narinfo"); got.Header.Get("Cache-Control") != "max-age=5" {
			t.Errorf("negative TTL: %v", got.Header)
		}
		if got := get(t, s.addresses[0], "/signing-key.pub"); got.body != publicKey(t, "main.pub") {
			t.Errorf("key: %s %q", got.Status, got.body)
		}
		if strings.Contains(s.err.String(), "level=DEBUG") {
			t.Errorf("logged at INFO: %s", s.err.String())
		}
		s.stop(t, os.Interrupt)
	}
}

// TestNoInactiveOptions: no warnings if all given options have an effect.
func TestNoInactiveOptions(t *testing.T) {
	t.Parallel()
	s := newPlace(t).serve(t, "--ttl=30d", "--x-accel-redirect", "--acl="+caseKeys("acl"))
	if strings.Contains(s.err.String(), "level=WARN") {
		t.Errorf("warnings: %s", s.err.String())
	}
}

// TestMirrorWithoutStorage: a mirror of an unreachable source answers that it is not ready.
func TestMirrorWithoutStorage(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	address := ownHost() + ":" + instancePort
	host, port, _ := strings.Cut(address, ":")
	s := &server{process: within("run-server", "--host="+host, "--port="+port, "--database="+p.database, "--mirror=http://127.0.0.1:1"), addresses: []string{address}}
	s.start(t)
	until(t, "it answers", func() bool { return strings.Contains(s.err.String(), "requests get 503") })
	until(t, "the failure", func() bool {
		got := get(t, s.addresses[0], "/health")
		return got.StatusCode == 503 && strings.Contains(got.body, `"status":"syncing"`) && strings.Contains(got.body, "connection refused")
	})
	if got := get(t, s.addresses[0], "/health/live"); got.StatusCode != 200 {
		t.Errorf("%s %s", got.Status, got.body)
	}
	if got := get(t, s.addresses[0], "/00000000000000000000000000000000.narinfo"); got.StatusCode != 503 || got.Header.Get("Retry-After") == "" {
		t.Errorf("%s %v", got.Status, got.Header)
	}
	// Between two attempts; during one, the status has no error.
	until(t, "the failure in mirror-status", func() bool {
		got := runProgram(t, "mirror-status", "http://"+s.addresses[0])
		return got.status == 1 && strings.Contains(got.out, "connection refused")
	})
	if got := runProgram(t, "mirror-status", "http://127.0.0.1:1"); got.status != 2 || !strings.Contains(got.err, "connection refused") {
		t.Errorf("%+v", got)
	}
	s.stop(t, syscall.SIGTERM)
	if _, err := os.Stat(p.database); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a database was created: %v", err)
	}
}

// TestBadOptions: each wrong value causes one line, and nothing else.
func TestBadOptions(t *testing.T) {
	t.Parallel()
	const duration, size = "a number and one of s, min, h, d, w, mo", "a number of bytes"
	for _, test := range []struct {
		args   []string
		wanted []string
	}{
		{[]string{"--port=x"}, []string{"--port", `"x"`, "0 to 65535"}},
		{[]string{"--port", "65536"}, []string{"--port", `"65536"`, "0 to 65535"}},
		{[]string{"--port=-1"}, []string{"--port", "-1", "0 to 65535"}},
		{[]string{"--port", "-1"}, []string{"--port", "-1"}},
		{[]string{"--port="}, []string{"--port", `""`, "0 to 65535"}},
		{[]string{"--port=80 "}, []string{"--port", "80 "}},
		{[]string{"--port"}, []string{"--port"}},
		{[]string{"--ttl=5"}, []string{"--ttl", `"5"`, duration}},
		{[]string{"--ttl=5M"}, []string{"--ttl", `"5M"`, duration}},
		{[]string{"--ttl=5minutes"}, []string{"--ttl", `"5minutes"`, duration}},
		{[]string{"--mirror-interval=5m"}, []string{"--mirror-interval", `"5m"`, "5min", "5mo"}},
		{[]string{"--database-dump-interval=5m"}, []string{"--database-dump-interval", `"5m"`, "5min", "5mo"}},
		{[]string{"--storage-check-interval=5m"}, []string{"--storage-check-interval", `"5m"`, "5min", "5mo"}},
		{[]string{"--storage-nar-removal-criteria=unused-for=5m"}, []string{"--storage-nar-removal-criteria", `"5m"`, "5min", "5mo"}},
		{[]string{"--ttl=-5d"}, []string{"--ttl", "-5d", duration}},
		{[]string{"--ttl="}, []string{"--ttl", `""`, duration}},
		{[]string{"--ttl=1.5d"}, []string{"--ttl", `"1.5d"`, duration}},
		{[]string{"--ttl= 5d"}, []string{"--ttl", `" 5d"`, duration}},
		{[]string{"--ttl=5d\n"}, []string{"--ttl", `"5d\n"`, duration}},
		{[]string{"--ttl=99999999999999999999d"}, []string{"--ttl", "99999999999999999999d", "at most"}},
		{[]string{"--ttl=9223372036854775807s"}, []string{"--ttl", "9223372036854775807s", "at most"}},
		{[]string{"--new-ttl=1y"}, []string{"--new-ttl", `"1y"`, duration}},
		{[]string{"--negative-ttl=x"}, []string{"--negative-ttl", `"x"`, duration}},
		{[]string{"--storage-limit=much"}, []string{"--storage-limit", `"much"`, size, "none"}},
		{[]string{"--storage-minimum-free-space=much"}, []string{"--storage-minimum-free-space", `"much"`, size, "none"}},
		{[]string{"--storage-minimum-free-space=8000P"}, []string{"--storage-minimum-free-space", "in all", "mounted"}},
		{[]string{"--storage-minimum-free-space=1G", "--storage=s3://nars"}, []string{"--storage-minimum-free-space", "bucket"}},
		{[]string{"--storage-limit=-1"}, []string{"--storage-limit", "-1", size}},
		{[]string{"--storage-limit=10X"}, []string{"--storage-limit", `"10X"`, size}},
		{[]string{"--storage-limit=99999999T"}, []string{"--storage-limit", "99999999T", "too large"}},
		{[]string{"--storage-limit=9999999999999999999999"}, []string{"--storage-limit", "too large"}},
		{[]string{"--storage-limit=8192"}, []string{"--storage-limit", "8192 lacks a unit", "8192T"}},
		{[]string{"--storage-hard-limit=9"}, []string{"--storage-hard-limit", "9 lacks a unit", "9T"}},
		{[]string{"--storage-minimum-free-space=50"}, []string{"--storage-minimum-free-space", "50 lacks a unit", "50G"}},
		{[]string{"--cached-compression-directory-max-size=zstd=50"}, []string{"--cached-compression-directory-max-size", "50 lacks a unit", "50G"}},
		{[]string{"--storage-nar-removal-criteria=https://x.example"}, []string{"--storage-nar-removal-criteria", "https://x.example", "stored-on=URL"}},
		{[]string{"--storage-nar-removal-criteria=stored-on=x"}, []string{"--storage-nar-removal-criteria", `"x"`, "http://HOST"}},
		{[]string{"--mirror=mirror.example"}, []string{"--mirror", `"mirror.example"`, "http://HOST"}},
		{[]string{"--mirror=ftp://mirror.example"}, []string{"--mirror", "ftp://mirror.example", "http://HOST"}},
		{[]string{"--mirror=https://"}, []string{"--mirror", "https://", "http://HOST"}},
		{[]string{"--mirror="}, []string{"--mirror", `""`, "http://HOST"}},
		{[]string{"--mirror-nars=some"}, []string{"--mirror-nars", `"some"`, "all", "on-demand", "none"}},
		{[]string{"--mirror-fetchers=0"}, []string{"--mirror-fetchers", `"0"`, "1 to"}},
		{[]string{"--mirror-bandwidth=0"}, []string{"--mirror-bandwidth=0", "none"}},
		{[]string{"--mirror-bandwidth=fast"}, []string{"--mirror-bandwidth", `"fast"`, "a number of bytes"}},
		{[]string{"--log-level=TRACE"}, []string{"--log-level", `"TRACE"`, "DEBUG, INFO, WARN or ERROR"}},
		{[]string{"--enable-cached-compression=brotli"}, []string{"--enable-cached-compression", `"brotli"`, "zstd, lzip, gzip"}},
		{[]string{"--enable-cached-compression=none"}, []string{"--enable-cached-compression", `"none"`, "zstd, lzip, gzip"}},
		{[]string{"--enable-cached-compression=zstd:23"}, []string{"--enable-cached-compression", `"23"`, "1 to 22"}},
		{[]string{"--enable-cached-compression=lzip:x"}, []string{"--enable-cached-compression", `"x"`, "0 to 9"}},
		{[]string{"--enable-cached-compression=gzip:"}, []string{"--enable-cached-compression", `""`, "1 to 9"}},
		{[]string{"--cached-compression-ttl=zstd=5d"}, []string{"--cached-compression-ttl=zstd", "not enabled", "--enable-cached-compression=zstd"}},
		{[]string{"--enable-cached-compression=zstd", "--cached-compression-ttl=zstd=5d", "--cached-compression-ttl=zstd=6d"}, []string{"--cached-compression-ttl", "twice", "zstd"}},
		{[]string{"--cached-compression-nar-source=/"}, []string{"--cached-compression-nar-source", "--enable-cached-compression"}},
		{[]string{"--cached-compression-directory=/x"}, []string{"--cached-compression-directory", `"/x"`, "TYPE=VALUE"}},
		{[]string{"--cached-compression-directory=zstd="}, []string{"--cached-compression-directory", "empty"}},
		{[]string{"--cached-compression-directory=xz=/x"}, []string{"--cached-compression-directory", `"xz"`, "zstd, lzip, gzip"}},
		{[]string{"--cached-compression-directory-max-size=zstd"}, []string{"--cached-compression-directory-max-size", "zstd", "TYPE=VALUE"}},
		{[]string{"--cached-compression-directory-max-size=zstd=big"}, []string{"--cached-compression-directory-max-size", `"big"`, size}},
		{[]string{"--cached-compression-unused-removal-duration=lzip=5"}, []string{"--cached-compression-unused-removal-duration", `"5"`, duration}},
		{[]string{"--cached-compression-ttl=5d"}, []string{"--cached-compression-ttl", `"5d"`, "TYPE=VALUE"}},
		{[]string{"--cached-compression-new-ttl=zstd=x"}, []string{"--cached-compression-new-ttl", `"x"`, duration}},
		{[]string{"--cached-compression-min-uses=0"}, []string{"--cached-compression-min-uses", `"0"`, "1 to"}},
		{[]string{"--cached-compression-workers=x"}, []string{"--cached-compression-workers", `"x"`, "1 to"}},
		{[]string{"--cached-compression-workers=99999999999"}, []string{"--cached-compression-workers", "99999999999", "1 to"}},
		{[]string{"--storage-cache-size=much"}, []string{"--storage-cache-size", `"much"`, size}},
		{[]string{"--storage-cache=/nonexistent/x", "--storage-cache-size=0"}, []string{"--storage-cache-size", "above 0"}},
		{[]string{"--storage-cache=/nonexistent/x", "--storage-cache-size=none"}, []string{"--storage-cache-size", "above 0"}},
		{[]string{"--signing-key=/etc/passwd"}, []string{"--signing-key", "/etc/passwd", "(public-key"}},
		{[]string{"--narinfo-cache-size=x"}, []string{"--narinfo-cache-size", `"x"`, size}},
		{[]string{"--control-port=x"}, []string{"--control-port", `"x"`, "0 to 65535"}},
		{[]string{"--control-host=127.0.0.2"}, []string{"--control-host=127.0.0.2", "add --control-port"}},
		{[]string{"--public-metrics=perhaps"}, []string{"--public-metrics", "perhaps", "yes", "no"}},
		{[]string{"--x-accel-redirect=perhaps"}, []string{"--x-accel-redirect", "perhaps"}},
		{[]string{"--max-connections=0"}, []string{"--max-connections", `"0"`, "1 to"}},
		{[]string{"--max-connections-per-address=none"}, []string{"--max-connections-per-address", `"none"`, "1 to"}},
		{[]string{"--trusted-proxies=10.0.0.0/33"}, []string{"--trusted-proxies", `"10.0.0.0/33"`, "IP address"}},
		{[]string{"--trusted-proxies=::1,10.0.0.1/8"}, []string{"--trusted-proxies", `"10.0.0.1/8"`, "10.0.0.0/8"}},
		{[]string{"--trusted-proxies=proxy.example"}, []string{"--trusted-proxies", `"proxy.example"`, "IP address"}},
		{[]string{"--trusted-proxies=fe80::1%eth0"}, []string{"--trusted-proxies", `"fe80::1%eth0"`, "IP address"}},
		{[]string{"--frobnicate"}, []string{"--frobnicate"}},
		{[]string{"--frobnicate=x\ny"}, []string{"--frobnicate"}},
		{[]string{"--frob\nnicate"}, []string{"--frob"}},
		{[]string{"--ttl 5d"}, []string{"--ttl 5d"}},
		{[]string{"-t", "5d"}, []string{"-t"}},
		{[]string{"surplus"}, []string{"surplus"}},
	} {
		t.Run(strings.Join(test.args, " "), func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			args := append([]string{"run-server", "--port=0", "--storage=" + dir, "--database=" + dir + "/index.db", "--pid-file=" + dir + "/pid"}, test.args...)
			misuse(t, args, test.wanted...)
			isEmpty(t, dir)
		})
	}
}

// TestUnusableOptions is TestBadOptions for values that may be valid at another time or on
// another machine.
func TestUnusableOptions(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		args   []string
		wanted []string
	}{
		{[]string{"--host=no.such.host.invalid"}, []string{"--host", "no.such.host.invalid", "unix:PATH"}},
		{[]string{"--host=256.1.1.1"}, []string{"--host", "256.1.1.1"}},
		{[]string{"--host=unix:"}, []string{"--host", "unix:"}},
		{[]string{"--host=unix:/nonexistent/socket"}, []string{"--host", "/nonexistent/socket"}},
		{[]string{"--host=192.0.2.254"}, []string{"--host", "192.0.2.254"}},
		{[]string{"--enable-cached-compression=zstd", "--cached-compression-nar-source=/nonexistent"}, []string{"--cached-compression-nar-source=/nonexistent"}},
		{[]string{"--storage-cache=/proc/nonexistent"}, []string{"--storage-cache", "/proc/nonexistent"}},
		{[]string{"--signing-key=/nonexistent"}, []string{"--signing-key", "/nonexistent"}},
	} {
		t.Run(strings.Join(test.args, " "), func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			fail(t, append([]string{"run-server", "--port=0", "--storage=" + dir, "--database=" + dir + "/index.db", "--pid-file=" + dir + "/pid"}, test.args...), test.wanted...)
			isEmpty(t, dir)
		})
	}
}

func isEmpty(t *testing.T, dir string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) > 0 {
		t.Errorf("%s has %v, %v", dir, entries, err)
	}
}

// TestBadCommands is the same for arguments before the options.
func TestBadCommands(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	database := "--database=" + dir + "/index.db"
	for _, test := range []struct {
		status int
		args   []string
		wanted []string
	}{
		{statusUsage, []string{"frobnicate"}, []string{"frobnicate"}},
		{statusUsage, []string{"--frobnicate"}, []string{"--frobnicate"}},
		{statusUsage, []string{"run-server", "--port=0", database}, []string{"--storage", "--mirror"}},
		{1, []string{"run-server", "--port=0", database, "--storage=" + dir + "/nonexistent"}, []string{"--storage", "/nonexistent"}},
		{1, []string{"run-server", "--port=0", database, "--storage=/etc/passwd"}, []string{"--storage", "/etc/passwd"}},
		{statusUsage, []string{"run-server", "--port=0", database, "--storage=s3://bucket?endpont=x"}, []string{"s3://BUCKET/PREFIX", "endpont"}},
		{1, []string{"run-server", "--port=0", "--storage=" + dir, "--database=" + dir + "/nonexistent/index.db"}, []string{"--database", "/nonexistent"}},
		{1, []string{"run-server", "--port=0", "--storage=" + dir, "--database=" + dir}, []string{"--database", dir}},
		{statusUsage, []string{"import", database}, []string{"file-or-directory"}},
		{statusUsage, []string{"import", database, "--tag=novalue", dir}, []string{"--tag", `"novalue"`, "KEY=VALUE"}},
		{statusUsage, []string{"import", database, "--tag==x", dir}, []string{"--tag", `"=x"`, "KEY=VALUE"}},
		{1, []string{"import", database, "--storage=" + dir + "/nonexistent", dir}, []string{"--storage", "/nonexistent"}},
		{statusUsage, []string{"remove", database, "rubbish"}, []string{`"rubbish"`, "/gnu/store/HASH-NAME"}},
		{statusUsage, []string{"remove", database}, []string{"store-path", "--tag"}},
		{statusUsage, []string{"remove", database, "--tag=novalue"}, []string{"--tag", `"novalue"`, "KEY=VALUE"}},
		{statusUsage, []string{"pin", database}, []string{"store-path"}},
		{statusUsage, []string{"unpin", database}, []string{"store-path"}},
		{1, []string{"pin", database, "/gnu/store/00000000000000000000000000000000-x"}, []string{"--database", "index.db"}},
		{1, []string{"pins", database}, []string{"--database", "index.db"}},
		{1, []string{"remove", database, "/gnu/store/00000000000000000000000000000000-x"}, []string{"--database", "index.db"}},
		{1, []string{"list", database}, []string{"--database", "index.db"}},
		{1, []string{"stats", database}, []string{"--database", "index.db"}},
		{statusUsage, []string{"help", "frobnicate"}, []string{"frobnicate"}},
	} {
		failWith(t, test.status, test.args, test.wanted...)
	}
	if err := os.Remove(filepath.Join(dir, "index.db.lock")); err != nil {
		t.Error(err)
	}
	isEmpty(t, dir)
}

// TestBadBucketURL: an invalid storage URL is an error before anything is opened, or
// downloaded from the source.
func TestBadBucketURL(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	var asked atomic.Int64
	source := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		http.NotFound(w, r)
	}))
	defer source.Close()
	const url = "s3://bucket?checksum=foo"
	database, nowhere := "--database="+dir+"/index.db", filepath.Join(dir, "nonexistent")
	for option, args := range map[string][]string{
		"--storage": {"run-server", database, "--port=0", "--pid-file=" + dir + "/pid", "--mirror=" + source.URL, "--storage=" + url},
		"--to":      {"copy-storage", "--database=none", "--from=" + nowhere, "--to=" + url},
		"--from":    {"copy-storage", "--database=none", "--to=" + nowhere, "--from=" + url},
	} {
		misuse(t, args, option, `checksum="foo"`, "crc32c, crc32 or none")
	}
	for _, args := range [][]string{{"export", database, nowhere}, {"check", database}, {"import", database, nowhere}, {"remove", database, "--tag=a=b"}, {"convert", nowhere, nowhere}, {"claim-storage", database}} {
		misuse(t, append(args, "--storage="+url), "--storage", `checksum="foo"`, "crc32c, crc32 or none")
	}
	if n := asked.Load(); n != 0 {
		t.Errorf("the source got %d requests", n)
	}
	isEmpty(t, dir)
}

func TestHelp(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{nil, {"help"}, {"--help"}, {"help", "import"}, {"import", "--help"}, {"help", "run-server"}, {"run-server", "--help"}, {"run-server", "--storage=x", "--help"}} {
		r := runProgram(t, args...)
		if r.status != 0 || r.err != "" || !strings.Contains(r.out, "Usage: nar-herder") {
			t.Errorf("%q: status %d, stderr %q, stdout %q", args, r.status, r.err, r.out)
		}
	}
	help := succeed(t, "help", "run-server")
	for _, name := range []string{"host", "port", "pid-file", "database", "storage", "cached-compression-workers", "signing-key"} {
		if !strings.Contains(help, "--"+name) {
			t.Errorf("--%s is not in the help", name)
		}
	}
	version := succeed(t, "version")
	if !strings.HasPrefix(version, "nar-herder "+release) {
		t.Errorf("version: %q", version)
	}
	for _, args := range [][]string{{"--version"}, {"run-server", "--version"}} {
		if got := succeed(t, args...); got != version {
			t.Errorf("%q: %q", args, got)
		}
	}
}
