package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"nar-herder/internal/selfsigned"
)

// contrib returns the text of a file below contrib, with replacements. Each must occur.
func contrib(t *testing.T, name string, pairs ...string) string {
	t.Helper()
	text := read(t, root, "contrib", name)
	for i := 0; i < len(pairs); i += 2 {
		if !strings.Contains(text, pairs[i]) {
			t.Errorf("contrib/%s does not have %q", name, pairs[i])
		}
		text = strings.ReplaceAll(text, pairs[i], pairs[i+1])
	}
	return text
}

// write writes a file, and makes its directory.
func write(t *testing.T, name, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// TestUnits: systemd accepts the units and finds the service well confined.
func TestUnits(t *testing.T) {
	t.Parallel()
	analyze := required(t, "systemd-analyze")
	dir := t.TempDir()
	service, socket, https := filepath.Join(dir, "nar-herder.service"), filepath.Join(dir, "nar-herder.socket"), filepath.Join(dir, "nar-herder-https.socket")
	write(t, service, contrib(t, "systemd/nar-herder.service", "/usr/local/bin/nar-herder", binary))
	write(t, socket, contrib(t, "systemd/nar-herder.socket"))
	write(t, https, contrib(t, "systemd/nar-herder-https.socket", "FileDescriptorName="+socketOfTLS, "FileDescriptorName="+socketOfTLS))
	// The man page isn't installed.
	if out, err := exec.Command(analyze, "verify", "--man=no", service, socket, https).CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("verify: %v: %s", err, out)
	}
	// It fails above an exposure of 3.0.
	if out, err := exec.Command(analyze, "security", "--offline=true", "--threshold=30", service).CombinedOutput(); err != nil {
		t.Errorf("security: %v: %s", err, out)
	}
	// What the server would otherwise lack only in some configurations.
	for _, line := range []string{
		"Type=notify", "StateDirectory=nar-herder", "CacheDirectory=nar-herder", "ReadWritePaths=-/srv/nars", "RequiresMountsFor=/srv/nars",
		fmt.Sprintf("RestartPreventExitStatus=%d", statusUsage),
		"RestrictAddressFamilies=AF_INET AF_INET6 AF_NETLINK AF_UNIX",
		"SystemCallFilter=@chown", // for the groups of new files
	} {
		if !strings.Contains(read(t, service), "\n"+line+"\n") {
			t.Errorf("the service lacks %s", line)
		}
	}
	// This option forbids what the groups of directories need; see TestTwoUsers.
	if strings.Contains(read(t, service), "\nRestrictSUIDSGID=") {
		t.Error("RestrictSUIDSGID: new directories can't be shared with the group")
	}
	for _, flag := range commandModel(t).Children[0].Flags {
		if flag.Name == "database" && !strings.HasPrefix(flag.Default, "/var/lib/nar-herder/") {
			t.Errorf("--database=%s is not in the StateDirectory", flag.Default)
		}
	}
}

// TestUserAndDirectories makes the user and the directories in another root, and leaves what
// an administrator changed.
func TestUserAndDirectories(t *testing.T) {
	t.Parallel()
	sysusers, tmpfiles := required(t, "systemd-sysusers"), required(t, "systemd-tmpfiles")
	asRoot(t)
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "etc"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, kind := range []string{"sysusers.d", "tmpfiles.d"} {
		write(t, filepath.Join(dir, "usr/lib", kind, "nar-herder.conf"), contrib(t, "systemd/"+kind+"/nar-herder.conf"))
	}
	makeAll := func() {
		t.Helper()
		for _, cmd := range [][]string{{sysusers, "--root=" + dir}, {tmpfiles, "--root=" + dir, "--create"}} {
			if out, err := exec.Command(cmd[0], cmd[1:]...).CombinedOutput(); err != nil {
				t.Fatalf("%s: %v: %s", cmd, err, out)
			}
		}
	}
	makeAll()
	var uid, gid uint32
	for line := range strings.Lines(read(t, dir, "etc/passwd")) {
		if _, err := fmt.Sscanf(strings.ReplaceAll(line, ":", " "), "nar-herder x %d %d", &uid, &gid); err == nil {
			break
		}
	}
	if uid == 0 || gid == 0 {
		t.Fatalf("the user: %s", read(t, dir, "etc/passwd"))
	}
	check := func(name string, mode, uid, gid uint32) {
		t.Helper()
		var stat syscall.Stat_t
		if err := syscall.Stat(filepath.Join(dir, name), &stat); err != nil || stat.Mode&0o7777 != mode || stat.Uid != uid || stat.Gid != gid {
			t.Errorf("%s: %v, mode %#o, owner %d:%d, want %#o, %d:%d", name, err, stat.Mode&0o7777, stat.Uid, stat.Gid, mode, uid, gid)
		}
	}
	for _, name := range []string{"var/lib/nar-herder", "var/cache/nar-herder", "srv/nars"} {
		check(name, 0o2775, uid, gid)
	}
	nars := filepath.Join(dir, "srv/nars")
	if err := os.Chown(nars, int(uid), sharedGroup); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(nars, 0o750); err != nil {
		t.Fatal(err)
	}
	makeAll() // at the next boot
	check("srv/nars", 0o750, uid, sharedGroup)
}

// substitutesHost is the name of the server in contrib/nginx.
const substitutesHost = "substitutes.example.org"

// TestNginxConfigurations runs nginx with each file of contrib/nginx in front of the server.
func TestNginxConfigurations(t *testing.T) {
	t.Parallel()
	nginx := required(t, "nginx")
	for name, accel := range map[string]bool{"nar-herder.conf": false, "nar-herder-x-accel.conf": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPlace(t)
			p.imports(t, published(greeting))
			options := []string{"--ttl=1d"}
			if accel {
				options = append(options, "--x-accel-redirect")
			}
			s := p.serveProcess(t, options...)
			host, dir := ownHost(), t.TempDir()
			letsEncrypt := filepath.Join(dir, "letsencrypt")
			certificate, err := selfsigned.New(time.Now().Add(-time.Hour), time.Now().AddDate(0, 0, 30), substitutesHost)
			noError(t, err)
			write(t, filepath.Join(letsEncrypt, substitutesHost, "fullchain.pem"), string(certificate.ChainPEM))
			write(t, filepath.Join(letsEncrypt, substitutesHost, "privkey.pem"), string(certificate.KeyPEM))
			pairs := []string{
				"server 127.0.0.1:8734;", "server " + s.addresses[0] + ";",
				"listen 80;", "listen " + host + ":8735;", "    listen [::]:80;\n", "",
				"listen 443 ssl;", "listen " + host + ":8736 ssl;", "    listen [::]:443 ssl;\n", "",
				"/etc/letsencrypt/live/", letsEncrypt + "/", "root /var/www/html;", "root " + dir + ";",
			}
			if accel {
				pairs = append(pairs, "alias /srv/nars/", "alias "+p.storage+"/", "alias /var/cache/nar-herder/", "alias "+p.dir+"/cache/", "alias /var/lib/nar-herder/", "alias "+p.dir+"/")
			}
			config := contrib(t, "nginx/"+name, pairs...)
			write(t, filepath.Join(dir, ".well-known/acme-challenge/token"), "challenge")
			checkNginx(t, nginx, config)
			startNginx(t, nginx, host+":8735", config)

			from := func(source string, secure bool) *http.Client {
				dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(source)}}
				port := ":8735"
				if secure {
					port = ":8736"
				}
				transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: certificate.Pool()}, DisableCompression: true}
				transport.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
					return dialer.DialContext(ctx, "tcp", host+port)
				}
				t.Cleanup(transport.CloseIdleConnections)
				return &http.Client{Transport: transport, Timeout: patience}
			}
			fetch := func(client *http.Client, scheme, target string) (*http.Response, string) {
				t.Helper()
				response, err := client.Get(scheme + "://" + substitutesHost + target)
				if err != nil {
					t.Fatal(err)
				}
				defer response.Body.Close()
				body, err := io.ReadAll(response.Body)
				if err != nil {
					t.Fatal(err)
				}
				return response, string(body)
			}
			narinfo, nar := read(t, published(greeting)), read(t, p.storage, "nar/lzip", greeting)
			until(t, "the first dump", func() bool { return get(t, s.addresses[0], "/latest-database-dump").StatusCode == 200 })
			for scheme, client := range map[string]*http.Client{"http": from("127.0.0.1", false), "https": from("127.0.0.1", true)} {
				for target, want := range map[string]string{"/" + narinfoName(greeting): narinfo, "/nar/lzip/" + greeting: nar, "/.well-known/acme-challenge/token": "challenge"} {
					got, body := fetch(client, scheme, target)
					if got.StatusCode != 200 || body != want {
						t.Errorf("%s, %s: %s, %d bytes", scheme, target, got.Status, len(body))
					}
					if strings.HasPrefix(target, "/nar/") && !strings.Contains(got.Header.Get("Cache-Control"), "max-age=86400") {
						t.Errorf("%s, %s: Cache-Control %q", scheme, target, got.Header.Get("Cache-Control"))
					}
				}
				if got, body := fetch(client, scheme, "/nar/"+greeting); got.StatusCode != 200 || !strings.Contains(body, "nix-archive-1") {
					t.Errorf("%s, decompressed: %s, %d bytes", scheme, got.Status, len(body))
				}
				if got, body := fetch(client, scheme, "/latest-database-dump"); got.StatusCode != 200 || body == "" {
					t.Errorf("%s, the dump: %s, %d bytes", scheme, got.Status, len(body))
				}
				for _, target := range []string{"/metrics", "/metrics?x", "/%6detrics", "//metrics", "/health", "/health/ready", "/health/live", "/debug/pprof/", "/internal/nar/lzip/" + greeting, "/internal/database/index.db"} {
					if got, body := fetch(client, scheme, target); got.StatusCode != 404 {
						t.Errorf("%s, %s: %s, %s", scheme, target, got.Status, body)
					}
				}
			}
			// The server leaves nars to nginx only with the option.
			if got := get(t, s.addresses[0], "/nar/lzip/"+greeting); (got.Header.Get("X-Accel-Redirect") != "") != accel || (got.body == "") != accel {
				t.Errorf("the server itself: %s, %s", got.Status, got.Header)
			}
			// Narinfos are not cached.
			succeed(t, p.args("remove", "--now", greeting[:32])...)
			until(t, "the narinfo is gone", func() bool {
				got, _ := fetch(from("127.0.0.1", true), "https", "/"+narinfoName(greeting))
				return got.StatusCode == 404
			})
			// Streams are for the mirrors that the file names.
			for source, status := range map[string]int{"127.0.0.1": 200, "127.0.0.9": 503} {
				response, err := from(source, true).Get("https://" + substitutesHost + "/recent-changes/stream?after=0")
				if err != nil {
					t.Fatal(err)
				}
				response.Body.Close()
				if isStream := response.Header.Get("Content-Type") == "text/event-stream"; response.StatusCode != status || isStream != (status == 200) {
					t.Errorf("a stream for %s: %s, %s", source, response.Status, response.Header)
				}
			}
		})
	}
}
