package packaging

import (
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"nar-herder/internal/testlog"
)

// TestQuickStart follows README.md on a new machine, from "Install" to the first requests. The
// program is that of the release archive, as the machine has no Go.
func TestQuickStart(t *testing.T) {
	t.Parallel()
	m, blocks := documentMachine(t, "README.md")
	install := blocks[2]
	if build := "go build ./cmd/nar-herder\n"; !strings.HasPrefix(install, build) {
		t.Fatalf("README.md doesn't build the program: %q", install)
	} else {
		blocks[2] = strings.TrimPrefix(install, build)
	}
	m.copyIn(t, testdata+"/published", "/srv/published")
	m.follow(t, blocks[2:])
}

// TestFromGuixPublish follows docs/from-guix-publish.md with a cache of 'guix publish'.
func TestFromGuixPublish(t *testing.T) {
	t.Parallel()
	m, blocks := documentMachine(t, "docs/from-guix-publish.md")
	m.run(t, "install -m 755 /root/nar-herder /usr/local/bin/")
	m.copyIn(t, testdata+"/publish-cache", "/var/cache/guix/publish")
	m.write(t, "/etc/guix/signing-key.pub", read(t, testdata+"/publish-cache/signing-key.pub"))
	before := m.run(t, "cd /var/cache/guix/publish && find . -type f | sort | xargs sha256sum")
	m.follow(t, blocks)
	m.want(t, "cd /var/cache/guix/publish && find . -type f | sort | xargs sha256sum", strings.TrimSpace(before))
}

// stop is a comment of a page, where the text tells the reader to stop the server.
const stop = "<!-- run: systemctl stop nar-herder -->\n"

var shellBlock = regexp.MustCompile("(?ms)^(" + stop + ")?```sh\n(.*?)^```$")

// documentMachine returns a machine that has the release in the working directory, and the
// shell commands of a page that readers see, by blocks.
func documentMachine(t *testing.T, page string) (m *machine, blocks []string) {
	t.Helper()
	archive := built(t, "nar-herder-*.tar.gz")
	for _, match := range shellBlock.FindAllStringSubmatch(read(t, root+"/"+page), -1) {
		blocks = append(blocks, match[1]+match[2])
	}
	m = boot(t)
	m.write(t, "/root/release.tar.gz", read(t, archive))
	m.run(t, "tar -xzf /root/release.tar.gz -C /root --strip-components=1")
	return m, blocks
}

// follow runs each block in a terminal of its own, as root in /root. A block that starts a
// server keeps its terminal until the reader presses Ctrl-C there, before starting another.
func (m *machine) follow(t *testing.T, blocks []string) {
	t.Helper()
	interrupt := func() {}
	defer func() { interrupt() }()
	for _, block := range blocks {
		starts := strings.Contains(block, "nar-herder run-server")
		block, stops := strings.CutPrefix(block, stop)
		if starts || stops {
			interrupt()
		}
		var screen testlog.Buffer
		cmd := m.command(t.Context(), "cd /root\nset -ex\n"+block)
		cmd.Stdout, cmd.Stderr = &screen, &screen
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		ended := make(chan error, 1)
		go func() { ended <- cmd.Wait() }()
		for deadline := time.Now().Add(patience); ; {
			select {
			case err := <-ended:
				if err != nil || starts {
					t.Fatalf("%s: %v: %s", block, err, screen.String())
				}
			case <-time.After(20 * time.Millisecond):
				if time.Now().After(deadline) {
					t.Fatalf("%s: %s", block, screen.String())
				}
				if !starts || !strings.Contains(screen.String(), "msg=listening") {
					continue
				}
				interrupt = func() {
					_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGINT) // the test ends with it
					<-ended
					interrupt = func() {}
				}
			}
			break
		}
	}
}

// TestServiceByHand follows the section on systemd of docs/install.md.
func TestServiceByHand(t *testing.T) {
	t.Parallel()
	m, _ := documentMachine(t, "docs/install.md")
	_, section, _ := strings.Cut(read(t, root+"/docs/install.md"), "\n## systemd\n")
	section, _, _ = strings.Cut(section, "\n## ")
	toml := regexp.MustCompile("(?ms)^```toml\n# (/etc/[a-z.-]+):.*?\n(.*?)^```$").FindStringSubmatch(section)
	console := regexp.MustCompile("(?m)^# (.*)$").FindAllStringSubmatch(strings.SplitAfterN(section, "```console\n", 2)[1], -1)
	if toml == nil || len(console) < 4 {
		t.Fatalf("%q, %q", toml, console)
	}
	m.write(t, toml[1], toml[2])
	m.copyIn(t, testdata+"/published", "/srv/published")
	m.run(t, "install -m 755 /root/nar-herder /usr/local/bin/")
	for _, line := range console {
		m.run(t, "cd /root && "+line[1])
	}
	m.want(t, state, "active active")
	m.run(t, "runuser -u nar-herder -- nar-herder import --config=/etc/nar-herder.toml --keep /srv/published")
	m.serves(t)
}
