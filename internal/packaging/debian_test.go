// Package packaging tests the Debian package, the container image, and the first steps of the
// documents on machines that boot Debian.
package packaging

import (
	"context"
	"database/sql"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	_ "modernc.org/sqlite"

	"nar-herder/internal/selfsigned"
)

const (
	root     = "../.."
	testdata = root + "/testdata"
	// greeting is an item of testdata/published and of the old database.
	greeting, greetingNar = "f7d5xvkf9s1mdnclid1kqndn30nim936", greeting + "-greeting.txt"
)

// temporary is the directory of what the tests share.
var temporary string

func TestMain(m *testing.M) {
	var err error
	if temporary, err = os.MkdirTemp("", "nar-herder-debian-"); err != nil {
		panic(err)
	}
	status := m.Run()
	_ = os.RemoveAll(temporary) // what is left does no harm
	os.Exit(status)
}

// build makes the package and the release archive of the last commit in temporary.
var build = sync.OnceValue(func() error {
	cmd := exec.Command(filepath.Join(root, "scripts/deb"))
	cmd.Env = append(os.Environ(), "OUT="+temporary)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("scripts/deb: %w: %s", err, out)
	}
	return nil
})

// built returns the only file of that build that matches the pattern.
func built(t *testing.T, pattern string) string {
	t.Helper()
	for _, name := range []string{"git", "go", "dh", "dpkg-deb"} {
		required(t, name)
	}
	if _, err := os.Stat(filepath.Join(root, ".git")); err != nil {
		skip(t, "this is not a checkout")
	}
	if err := build(); err != nil {
		t.Fatal(err)
	}
	names, err := filepath.Glob(filepath.Join(temporary, pattern))
	if err != nil || len(names) != 1 {
		t.Fatalf("%s: %q, %v", pattern, names, err)
	}
	return names[0]
}

// read returns the text of a file of this machine.
func read(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// older returns the package with an older version number. Its configuration differs in a
// comment.
func older(t *testing.T, name string) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "package")
	output(t, "dpkg-deb", "--raw-extract", name, dir)
	for file, pair := range map[string][2]string{
		"DEBIAN/control":      {"\nVersion: ", "\nVersion: 0~"},
		"etc/nar-herder.toml": {"# Options of nar-herder", "# The options of nar-herder"},
	} {
		file = filepath.Join(dir, file)
		text := read(t, file)
		if strings.Count(text, pair[0]) != 1 {
			t.Fatalf("%s: %s", file, text)
		}
		if err := os.WriteFile(file, []byte(strings.Replace(text, pair[0], pair[1], 1)), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	output(t, "dpkg-deb", "-Znone", "--root-owner-group", "--build", dir, dir+".deb")
	return dir + ".deb"
}

// oldDatabase replaces the database and the nars of a stopped server by those of a program of
// schema version 3.
func (m *machine) oldDatabase(t *testing.T) {
	t.Helper()
	name := filepath.Join(t.TempDir(), "nar_herder.db")
	database, err := sql.Open("sqlite", name)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := database.Exec(read(t, testdata+"/schema-3.sql")); err != nil {
		t.Fatal(err)
	}
	if err := database.Close(); err != nil {
		t.Fatal(err)
	}
	m.run(t, "rm -r /srv/nars/* /var/lib/nar-herder/*")
	m.write(t, "/var/lib/nar-herder/nar_herder.db", read(t, name))
	for _, name := range []string{greetingNar, "nxrz38jzshzw0q3fqi3fqimjg1zr62r9-greet-1.0"} {
		m.write(t, "/srv/nars/nar/lzip/"+name, read(t, testdata+"/published/nar/lzip/"+name))
	}
	m.run(t, "chown -R nar-herder:nar-herder /var/lib/nar-herder /srv/nars")
}

const (
	address = "http://127.0.0.1:8734"
	fetch   = "curl -sS --fail --max-time 30 "
	state   = "systemctl is-active nar-herder.socket nar-herder.service | tr '\\n' ' '"
)

// secure checks that the service has an item over HTTPS.
const secure = fetch + "--cacert /etc/ssl/nar-herder.pem --connect-to ::127.0.0.1:443 https://substitutes.example.org/" + greeting + ".narinfo | cmp - /srv/published/" + greeting + ".narinfo"

// serves checks that the service has an item.
func (m *machine) serves(t *testing.T) {
	t.Helper()
	m.run(t, fetch+address+"/"+greeting+".narinfo | cmp - /srv/published/"+greeting+".narinfo")
	m.run(t, fetch+address+"/nar/lzip/"+greetingNar+" | cmp - /srv/published/nar/lzip/"+greetingNar)
}

// TestPackage installs the package, uses its service, upgrades from an older version with an
// older database, and removes it.
func TestPackage(t *testing.T) {
	t.Parallel()
	current := built(t, "nar-herder_*.deb")
	m := boot(t)
	m.write(t, "/root/old.deb", read(t, older(t, current)))
	m.write(t, "/root/new.deb", read(t, current))
	m.copyIn(t, testdata+"/published", "/srv/published")

	m.run(t, "apt-get install -y /root/old.deb")
	m.want(t, state, "active active")
	m.want(t, "systemctl is-enabled nar-herder.socket nar-herder.service | tr '\\n' ' '", "enabled enabled")
	m.run(t, fetch+address+"/nix-cache-info | grep 'StoreDir: /gnu/store'")
	m.run(t, fetch+"http://127.0.0.1:8735/health/ready")
	m.want(t, "stat -c '%n %a %U:%G' /etc/nar-herder.toml /srv/nars /var/lib/nar-herder /var/cache/nar-herder /var/log/nar-herder",
		"/etc/nar-herder.toml 640 root:nar-herder\n/srv/nars 2775 nar-herder:nar-herder\n/var/lib/nar-herder 2775 nar-herder:nar-herder\n"+
			"/var/cache/nar-herder 2775 nar-herder:nar-herder\n/var/log/nar-herder 2750 nar-herder:nar-herder")
	m.want(t, "stat -c %U /proc/$(systemctl show --value -p MainPID nar-herder)", "nar-herder")
	m.run(t, "systemd-analyze security --threshold=30 nar-herder.service")
	m.run(t, "systemd-analyze verify --man=no nar-herder.service nar-herder.socket nar-herder-https.socket")

	// A user of the group imports beside the server.
	m.run(t, "useradd --groups nar-herder builder")
	m.run(t, "runuser -u builder -- nar-herder import --config=/etc/nar-herder.toml --keep /srv/published")
	m.serves(t)
	// New directories are for the group, too: the confined server can write to all that the user has
	// made, and does.
	m.want(t, "stat -c '%a %U:%G' /srv/nars/nar/lzip", "2775 builder:nar-herder")
	m.until(t, fetch+"http://127.0.0.1:8735/health | grep '\"status\":\"ok\"}'")
	m.until(t, "test -s /var/lib/nar-herder/nar_herder_dump.db")

	// A reload keeps the process; the socket starts a stopped server; a crash restarts it.
	const pid = "systemctl show --value -p MainPID nar-herder"
	before := m.run(t, pid)
	m.run(t, "systemctl reload nar-herder")
	m.serves(t)
	if after := m.run(t, pid); after != before {
		t.Errorf("the reload restarted the server: %s, %s", before, after)
	}
	m.run(t, "systemctl stop nar-herder.service")
	m.want(t, state, "active inactive")
	m.serves(t)
	m.run(t, "kill -KILL $("+pid+")")
	m.serves(t)
	m.want(t, "systemctl show --value -p NRestarts nar-herder", "1")

	// The administrator's slip is in the journal, and ends the restarts.
	m.run(t, `echo 'storage-limt = "1T"' >>/etc/nar-herder.toml`)
	if out, err := m.try(t.Context(), "systemctl restart nar-herder"); err == nil {
		t.Errorf("it starts with a wrong option: %s", out)
	}
	m.run(t, `journalctl --sync && journalctl -u nar-herder -p err | grep 'unknown option "storage-limt".*did you mean'`)
	m.run(t, `journalctl -u nar-herder -p warning | grep 'no keys are authorized'`)
	m.want(t, `journalctl -u nar-herder -p warning | grep -c 'msg=listening'`, "0")
	m.run(t, `sed -i '$d' /etc/nar-herder.toml && echo 'storage-limit = "1T"' >>/etc/nar-herder.toml && systemctl restart nar-herder`)
	m.want(t, state, "active active")
	m.serves(t)

	t.Run("logs", func(t *testing.T) { m.logs(t) })
	t.Run("HTTPS", func(t *testing.T) { m.https(t) })
	t.Run("upgrade", func(t *testing.T) { m.upgrade(t) })
	t.Run("migration", func(t *testing.T) { m.migration(t) })
	t.Run("removal", func(t *testing.T) { m.removal(t) })
}

// logs is a step of TestPackage: logrotate renames the access log, and the server opens another.
func (m *machine) logs(t *testing.T) {
	m.run(t, `echo 'access-log = "/var/log/nar-herder/access.log"' >>/etc/nar-herder.toml && systemctl restart nar-herder`)
	m.serves(t)
	m.until(t, "grep 'GET /"+greeting+".narinfo HTTP' /var/log/nar-herder/access.log")
	m.run(t, "logrotate --force /etc/logrotate.d/nar-herder")
	m.until(t, "test -e /var/log/nar-herder/access.log.1 && "+fetch+address+"/nix-cache-info && grep nix-cache-info /var/log/nar-herder/access.log")
	m.want(t, "stat -c '%U:%G' /var/log/nar-herder/access.log", "nar-herder:nar-herder")
}

// https is a step of TestPackage.
func (m *machine) https(t *testing.T) {
	certificate, err := selfsigned.New(time.Now().Add(-time.Hour), time.Now().Add(1000*time.Hour), "substitutes.example.org")
	if err != nil {
		t.Fatal(err)
	}
	m.write(t, "/etc/ssl/nar-herder.pem", string(certificate.ChainPEM))
	m.write(t, "/etc/ssl/nar-herder.key", string(certificate.KeyPEM))
	m.run(t, "chgrp nar-herder /etc/ssl/nar-herder.key && chmod 640 /etc/ssl/nar-herder.key")
	m.run(t, `sed -i '1i tls-certificate = "/etc/ssl/nar-herder.pem"\ntls-key = "/etc/ssl/nar-herder.key"' /etc/nar-herder.toml`)
	m.want(t, "systemctl is-enabled nar-herder-https.socket", "disabled")
	m.run(t, "systemctl stop nar-herder.service && systemctl enable --now nar-herder-https.socket && systemctl start nar-herder.service")
	m.run(t, secure)
	m.serves(t)
}

// upgrade is a step of TestPackage: no client's connection is refused.
func (m *machine) upgrade(t *testing.T) {
	const pid = "systemctl show --value -p MainPID nar-herder"
	before := m.run(t, pid)
	clients, stop := context.WithCancel(t.Context())
	defer stop()
	answers := make(chan string, 1)
	go func() {
		cmd := m.command(clients, "while :; do curl -sS --max-time 30 -o /dev/null -w '%{http_code} ' "+address+"/"+greeting+".narinfo 2>&1; sleep 0.02; done")
		out, _ := cmd.CombinedOutput() // it is killed
		answers <- string(out)
	}()
	// The changed configuration stays.
	m.run(t, "apt-get install -y -o DPkg::Options::=--force-confold /root/new.deb")
	m.serves(t)
	stop()
	if got := strings.Fields(<-answers); len(got) == 0 || slices.ContainsFunc(got, func(answer string) bool { return answer != "200" && answer != "503" }) {
		t.Errorf("answers during the upgrade: %q", got)
	}
	if after := m.run(t, pid); after == before {
		t.Error("the old program still runs")
	}
	m.run(t, "grep 'storage-limit = \"1T\"' /etc/nar-herder.toml")
	m.want(t, "stat -c '%a %U:%G' /etc/nar-herder.toml", "640 root:nar-herder")
	m.want(t, state, "active active")
}

// migration is a step of TestPackage: an upgrade from an older version, with its database. The
// older program is not run, as it has the schema of the new one.
func (m *machine) migration(t *testing.T) {
	m.run(t, "systemctl stop nar-herder.socket nar-herder.service && dpkg --force-confold --force-downgrade --unpack /root/old.deb")
	m.oldDatabase(t)
	m.run(t, "nar-herder stats 2>&1 | grep 'has schema version 3'")
	m.run(t, "apt-get install -y -o DPkg::Options::=--force-confold /root/new.deb")
	m.want(t, state, "active active")
	m.serves(t)
	m.run(t, "test -s /var/lib/nar-herder/nar_herder.db.schema-3")
	m.run(t, `journalctl --sync && journalctl -u nar-herder | grep 'migrated the database'`)
	m.run(t, "nar-herder stats | grep 'store items  *2$'")
}

// removal is a step of TestPackage.
func (m *machine) removal(t *testing.T) {
	kept := "/etc/nar-herder.toml /var/lib/nar-herder/nar_herder.db /srv/nars/nar/lzip/" + greetingNar
	m.run(t, "apt-get remove -y nar-herder")
	m.want(t, state, "inactive inactive")
	m.want(t, "systemctl is-active nar-herder-https.socket", "inactive")
	m.run(t, "ls "+kept)
	if out, err := m.try(t.Context(), "nar-herder version || curl "+address); err == nil {
		t.Errorf("after the removal: %s", out)
	}
	// The administrator may keep it from starting.
	const units = " nar-herder.socket nar-herder-https.socket nar-herder.service"
	m.run(t, "systemctl mask"+units+" && apt-get install -y /root/new.deb")
	m.want(t, state, "inactive inactive")
	m.run(t, "systemctl unmask"+units+" && apt-get install -y --reinstall /root/new.deb")
	m.want(t, state, "active active")
	m.serves(t)
	m.run(t, secure)
	out := m.run(t, "apt-get purge -y nar-herder")
	for _, dir := range []string{"/var/lib/nar-herder", "/srv/nars"} {
		if !strings.Contains(out, "kept "+dir+":") {
			t.Errorf("the purge doesn't name %s: %s", dir, out)
		}
	}
	_, kept, _ = strings.Cut(kept, " ")
	m.run(t, "ls "+kept)
	m.run(t, "rm /etc/ssl/nar-herder.*")
	m.want(t, "find /etc /usr /lib/systemd /var/lib/systemd /var/cache /var/log -name '*nar-herder*'", "")
	m.want(t, "dpkg-query -W -f '${Status}' nar-herder 2>&1 | grep -c ' installed'", "0")
}

// TestPackageInImage installs the package where systemd doesn't run, as in the build of an image.
// The service starts when the image boots.
func TestPackageInImage(t *testing.T) {
	t.Parallel()
	current := built(t, "nar-herder_*.deb")
	m := newMachine(t, "sh", "-c", "until [ -e /run/boot ]; do sleep 0.1; done; rm /run/boot; exec "+strings.Join(systemd, " "))
	m.write(t, "/root/new.deb", read(t, current))
	m.copyIn(t, testdata+"/published", "/srv/published")
	m.run(t, "apt-get install -y /root/new.deb")
	m.run(t, "runuser -u nar-herder -- nar-herder import --config=/etc/nar-herder.toml --keep /srv/published")
	m.run(t, "runuser -u nar-herder -- nar-herder config --config=/etc/nar-herder.toml | grep '^storage  *= \"/srv/nars\"'")
	m.run(t, "touch /run/boot")
	m.booted(t)
	m.want(t, state, "active active")
	m.serves(t)
}

// TestLintian checks the package with Debian's linter.
func TestLintian(t *testing.T) {
	t.Parallel()
	lintian := required(t, "lintian")
	cmd := exec.CommandContext(t.Context(), lintian, "--no-cfg", "--allow-root", "--fail-on=error,warning", built(t, "nar-herder_*.deb"))
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
}

// TestReproducible builds the package and the archive in another directory and environment. It
// uses the same cache of Go, as the script check-release takes minutes without.
func TestReproducible(t *testing.T) {
	t.Parallel()
	current := built(t, "nar-herder_*.deb")
	archive := built(t, "nar-herder-*.tar.gz")
	dir := filepath.Join(t.TempDir(), "another", "directory")
	absolute, err := filepath.Abs(root)
	if err != nil {
		t.Fatal(err)
	}
	output(t, "git", "clone", "--quiet", absolute, dir)
	output(t, "sh", "-ec", `umask 077; cd "$1"; TZ=Asia/Tokyo LC_ALL=C.UTF-8 GOFLAGS=-tags=other DEB_BUILD_OPTIONS=noopt scripts/deb`, "sh", dir)
	for _, file := range []string{current, archive} {
		output(t, "cmp", file, filepath.Join(dir, "dist", filepath.Base(file)))
	}
}
