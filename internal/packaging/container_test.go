package packaging

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// contained runs podman in a network and control group of its own. The kernel may offer control
// groups of version 1 as well, which podman's runtime refuses.
const contained = `
mount -t cgroup2 cgroup2 /sys/fs/cgroup
ip link set lo up
podman() { command podman --cgroup-manager=cgroupfs --events-backend=none "$@"; }
`

// TestContainer builds the image, and runs it with its volumes as a user without privileges.
func TestContainer(t *testing.T) {
	t.Parallel()
	built(t, "*.deb") // so that only one test builds the program
	for _, name := range []string{"podman", "crun", "unshare", "ip"} {
		required(t, name)
	}
	if os.Getuid() != 0 {
		skip(t, "run the tests as root: this test needs namespaces")
	}
	dir := t.TempDir()
	storage := filepath.Join(dir, "storage.conf")
	if err := os.WriteFile(storage, []byte("[storage]\ndriver = \"vfs\"\ngraphroot = \""+dir+"/root\"\nrunroot = \""+dir+"/run\"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	environment := append(os.Environ(), "CONTAINERS_STORAGE_CONF="+storage, "BUILDAH_ISOLATION=chroot")
	run := func(program string, args ...string) string {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), program, args...)
		cmd.Env, cmd.WaitDelay = environment, time.Second
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		return string(out)
	}
	run(filepath.Join(root, "scripts/container"))
	published, err := filepath.Abs(testdata + "/published")
	if err != nil {
		t.Fatal(err)
	}
	out := run("unshare", "--mount", "--net", "sh", "-ec", contained+`
volumes="--volume=database:/var/lib/nar-herder --volume=nars:/srv/nars"
options="--cgroups=disabled --read-only --tmpfs=/tmp --cap-drop=all --security-opt=no-new-privileges --ulimit=nofile=1024:1024 --ulimit=nproc=1024:1024 $volumes"
podman run --rm --network=none $options --volume="$1:/published:ro" nar-herder import --keep /published
podman run --detach --name=server --network=host $options nar-herder
trap 'podman logs server; podman rm --force server' EXIT
until podman healthcheck run server; do
	[ "$(podman inspect --format='{{.State.Status}}' server)" = running ]
	sleep 0.1
done
curl --silent --show-error --fail "http://127.0.0.1:8734/$2.narinfo" | cmp - "$1/$2.narinfo"
curl --silent --show-error --fail "http://127.0.0.1:8734/nar/lzip/$3" | cmp - "$1/nar/lzip/$3"
podman exec server nar-herder list | grep "$2"
grep -E '^(Uid|CapEff|NoNewPrivs):' /proc/$(podman inspect --format='{{.State.Pid}}' server)/status
begin=$(date +%s)
podman stop --time=60 server
echo "stopped with $(podman inspect --format='{{.State.ExitCode}}' server) in $(($(date +%s) - begin)) s"
root=$(podman image mount nar-herder)
find "$root" -printf '/%P %M %U:%G\n' | sort
cmp "$root/etc/ssl/certs/ca-certificates.crt" /etc/ssl/certs/ca-certificates.crt
`, "sh", published, greeting, greetingNar)
	for _, want := range []string{
		"Uid:\t8734\t8734\t8734\t8734\n", "CapEff:\t0000000000000000\n", "NoNewPrivs:\t1\n", "stopped with 0 in ",
		"/srv/nars drwxr-xr-x 8734:8734\n", "/var/lib/nar-herder drwxr-xr-x 8734:8734\n", "/var/cache/nar-herder drwxr-xr-x 8734:8734\n",
		"/tmp drwxrwxrwt 0:0\n", "/usr/bin/nar-herder -rwxr-xr-x 0:0\n", "/srv drwxr-xr-x 0:0\n", "/var/lib drwxr-xr-x 0:0\n", "/var/cache drwxr-xr-x 0:0\n",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q: %s", want, out)
		}
	}
	if strings.Contains(out, "level=ERROR") {
		t.Errorf("errors: %s", out)
	}
}

// TestCompose validates compose.yaml.
func TestCompose(t *testing.T) {
	t.Parallel()
	compose := required(t, "docker-compose")
	out := output(t, compose, "--file", root+"/contrib/container/compose.yaml", "config")
	for _, want := range []string{"network_mode: host", "/contrib/nginx/nar-herder.conf:/etc/nginx/conf.d/default.conf:ro"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q: %s", want, out)
		}
	}
}
