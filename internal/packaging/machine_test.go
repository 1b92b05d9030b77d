package packaging

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// patience is how long a test waits for what should take a moment.
const patience = time.Minute

// suite is the version of Debian that the tests install.
const suite = "bookworm"

// packages are installed in addition to the minimal system.
const packages = "systemd,curl,logrotate"

// required returns the path of a program that the test needs, or skips the test.
func required(t *testing.T, name string) string {
	t.Helper()
	for _, dir := range append(filepath.SplitList(os.Getenv("PATH")), "/usr/sbin", "/sbin") {
		if path, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
			return path
		}
	}
	skip(t, name+" is not installed")
	return ""
}

// skip skips a test, which fails in CI instead.
func skip(t *testing.T, reason string) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatal(reason)
	}
	t.Skip(reason)
}

// output runs a program, and returns what it printed.
func output(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			err = fmt.Errorf("%w: %s", err, exit.Stderr)
		}
		t.Fatalf("%s %s: %v", name, strings.Join(args, " "), err)
	}
	return string(out)
}

// debian returns a directory with a minimal Debian, which is kept for later runs in the cache
// of the user. Tests don't change it.
var debian = sync.OnceValues(func() (string, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	cache = filepath.Join(cache, "nar-herder-tests")
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return "", err
	}
	lock, err := os.Create(filepath.Join(cache, "lock"))
	if err != nil {
		return "", err
	}
	defer lock.Close() // unlocks it, too
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return "", err
	}
	dir := filepath.Join(cache, suite+"+"+strings.ReplaceAll(packages, ",", "+")) // mount separates options by commas
	if _, err := os.Stat(dir); err == nil {
		return dir, nil
	}
	// An interrupted run may have left it.
	incomplete := filepath.Join(cache, "incomplete")
	if err := os.RemoveAll(incomplete); err != nil {
		return "", err
	}
	if out, err := exec.Command("mmdebstrap", "--quiet", "--variant=minbase", "--include="+packages, suite, incomplete).CombinedOutput(); err != nil {
		return "", fmt.Errorf("mmdebstrap: %w: %s", err, out)
	}
	return dir, os.Rename(incomplete, dir)
})

// inside makes a machine of the directory $1, over the file system $2, with the control group
// $3. It runs as the first process of new namespaces for processes, mounts and the network, and
// becomes the machine's first process.
const inside = `
mount --make-rprivate /
mount -t tmpfs tmpfs "$1"
mkdir "$1/upper" "$1/work" "$1/root" "$1/cgroup"
mount -t cgroup2 cgroup2 "$1/cgroup"
mkdir "$1/cgroup/$3"
echo 0 >"$1/cgroup/$3/cgroup.procs"
umount "$1/cgroup"
mount -t overlay -o "lowerdir=$2,upperdir=$1/upper,workdir=$1/work" overlay "$1/root"
cd "$1/root"
mount -t proc proc proc
mount -t sysfs -o ro sysfs sys
mount -t tmpfs -o mode=755 tmpfs run
mount -t tmpfs -o mode=1777 tmpfs tmp
mount -t tmpfs -o mode=755 tmpfs dev
mkdir dev/pts dev/shm
for device in null zero full random urandom tty; do
	touch "dev/$device"
	mount --bind "/dev/$device" "dev/$device"
done
mount -t devpts -o newinstance,ptmxmode=666 devpts dev/pts
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
mkdir .outside
pivot_root . .outside
shift 3
exec unshare --cgroup sh -c 'mount -t cgroup2 cgroup2 /sys/fs/cgroup; umount -l /.outside; exec "$@"' sh "$@"
`

// machine is a Debian of its own. It has nothing but the kernel in common with this one.
type machine struct{ pid int }

// newMachine starts a machine with a first process.
func newMachine(t *testing.T, init ...string) *machine {
	t.Helper()
	if os.Getuid() != 0 {
		skip(t, "run the tests as root: this test needs namespaces")
	}
	for _, name := range []string{"mmdebstrap", "unshare", "nsenter"} {
		required(t, name)
	}
	lower, err := debian()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	group := fmt.Sprintf("nar-herder-test-%d-%d", os.Getpid(), time.Now().UnixNano())
	cmd := exec.Command("/bin/sh", append([]string{"-ec", inside, "sh", dir, lower, group}, init...)...)
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "container=test"}
	var log strings.Builder
	cmd.Stdout, cmd.Stderr = &log, &log
	cmd.WaitDelay = time.Second
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC,
		Pdeathsig:  syscall.SIGKILL,
	}
	started, ended := make(chan error, 1), make(chan struct{})
	go func() {
		defer close(ended)
		// The signal comes when this thread ends.
		runtime.LockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			_ = cmd.Wait() // it is killed
		}
	}()
	if err := <-started; err != nil {
		t.Fatal(err)
	}
	m := &machine{pid: cmd.Process.Pid}
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // it may have ended
		<-ended
		if t.Failed() {
			t.Logf("the machine: %s", log.String())
		}
		script := `mount -t cgroup2 cgroup2 "$1"; find "$1/$2" -depth -type d -exec rmdir {} +`
		if out, err := exec.Command("unshare", "--mount", "sh", "-ec", script, "sh", dir, group).CombinedOutput(); err != nil {
			t.Errorf("remove the control groups: %v: %s", err, out)
		}
	})
	m.until(t, "test -e /sys/fs/cgroup/cgroup.procs && test ! -e /.outside/etc")
	return m
}

// systemd is the first process of a machine that boots.
var systemd = []string{"/lib/systemd/systemd", "--show-status=no"}

// boot starts a machine with systemd, and waits for the end of the boot.
func boot(t *testing.T) *machine {
	t.Helper()
	m := newMachine(t, systemd...)
	m.booted(t)
	return m
}

// booted waits for the end of the boot.
func (m *machine) booted(t *testing.T) {
	t.Helper()
	m.until(t, "test -S /run/systemd/private")
	m.run(t, "systemctl is-system-running --wait")
}

// command is a shell command in the machine.
func (m *machine) command(ctx context.Context, script string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "nsenter", "--target", fmt.Sprint(m.pid), "--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup", "--root", "--wd", "/bin/sh", "-c", script)
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LC_ALL=C", "DEBIAN_FRONTEND=noninteractive"}
	// nsenter has a child, which must not outlive it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = time.Second
	return cmd
}

// try runs a shell command in the machine, and returns all that it printed.
func (m *machine) try(ctx context.Context, script string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	out, err := m.command(ctx, script).CombinedOutput()
	return string(out), err
}

// run is try for a command that must succeed.
func (m *machine) run(t *testing.T, script string) string {
	t.Helper()
	out, err := m.try(t.Context(), script)
	if err != nil {
		t.Fatalf("%s: %v: %s", script, err, out)
	}
	return out
}

// want runs a command that must print the text, besides white space around it.
func (m *machine) want(t *testing.T, script, text string) {
	t.Helper()
	if out, err := m.try(t.Context(), script); strings.TrimSpace(out) != text {
		t.Errorf("%s: %v, %q, want %q", script, err, out, text)
	}
}

// until waits until a command succeeds.
func (m *machine) until(t *testing.T, script string) {
	t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(50 * time.Millisecond) {
		out, err := m.try(t.Context(), script)
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: %v: %s", script, err, out)
		}
	}
}

// path is that of a file of the machine for this process.
func (m *machine) path(name string) string {
	return filepath.Join(fmt.Sprintf("/proc/%d/root", m.pid), name)
}

// copyIn copies a directory of this machine into the other.
func (m *machine) copyIn(t *testing.T, from, to string) {
	t.Helper()
	if err := os.CopyFS(m.path(to), os.DirFS(from)); err != nil {
		t.Fatal(err)
	}
}

// write writes a file of the machine.
func (m *machine) write(t *testing.T, name, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(m.path(name)), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(m.path(name), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}
