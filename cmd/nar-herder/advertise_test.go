package main

import (
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/alecthomas/kong"
)

func TestAdvertiseSlips(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	for _, c := range []struct {
		options []string
		wanted  []string
	}{
		{[]string{"--advertise"}, []string{"--advertise", "127.0.0.1:", "--host=0.0.0.0"}},
		{[]string{"--advertise", "--host=::1"}, []string{"--advertise", "[::1]:", "--host=ADDRESS"}},
		{[]string{"--advertise", "--host=unix:" + filepath.Join(p.dir, "socket")}, []string{"--advertise", "socket", "--host=0.0.0.0"}},
		{[]string{"--advertise=", "--host=0.0.0.0"}, []string{"--advertise", "empty"}},
		{[]string{"--advertise=farm.example.org", "--host=0.0.0.0"}, []string{"--advertise", "dot"}},
		{[]string{"--advertise=" + strings.Repeat("ä", 32), "--host=0.0.0.0"}, []string{"--advertise", "at most 63 bytes"}},
		{[]string{"--host=0.0.0.0", "--advertise", "Büro"}, []string{"Büro"}},
	} {
		misuse(t, append(p.args("run-server", "--port=0"), c.options...), c.wanted...)
	}
	if entries, err := os.ReadDir(p.storage); err != nil || len(entries) > 0 {
		t.Errorf("a refused start has changed the storage: %v %v", entries, err)
	}
}

func TestDiscoverable(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		network, address string
		want             bool
	}{
		{"tcp4", "0.0.0.0:0", true},
		{"tcp", "[::]:0", true},
		{"tcp6", "[::]:0", false},
		{"tcp", "127.0.0.1:0", false},
		{"tcp", "[::1]:0", false},
		{"unix", filepath.Join(t.TempDir(), "socket"), false},
	} {
		listener, err := net.Listen(c.network, c.address)
		if err != nil {
			t.Fatal(err)
		}
		if _, got := discoverable(listener); got != c.want {
			t.Errorf("%s %s: %v", c.network, c.address, got)
		}
		listener.Close()
	}
}

func TestAdvertiseSettings(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		environment, file, option, shown, want string
	}{
		{},
		{option: "--advertise", shown: `"true"`, want: defaultName()},
		{option: "--advertise=Büro", shown: `"Büro"`, want: "Büro"},
		{environment: "yes", shown: `"yes"`, want: defaultName()},
		{environment: "Büro", option: "--advertise=no", shown: `"no"`, want: ""},
		{file: "advertise = true", shown: `"true"`, want: defaultName()},
		{file: "advertise = false", shown: `"false"`, want: ""},
		{file: "advertise = 'Büro'", shown: `"Büro"`, want: "Büro"},
	} {
		var args, environment []string
		if c.option != "" {
			args = append(args, c.option)
		}
		if c.environment != "" {
			environment = []string{variable("advertise") + "=" + c.environment}
		}
		if c.file != "" {
			args = append(args, "--config="+writeConfig(t, c.file))
		}
		if got := shownConfig(t, environment, args...)["advertise"][0]; got != c.shown {
			t.Errorf("%+v: %q", c, got)
		}
		if c.shown == "" {
			continue
		}
		var options advertiseOption
		parser, err := kong.New(&options)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := parser.Parse([]string{"--advertise=" + strings.Trim(c.shown, `"`)}); err != nil || string(options.Advertise) != c.want {
			t.Errorf("%s: %q %v", c.shown, options.Advertise, err)
		}
	}
}

// TestAdvertisedPort: of several sockets, the first that other machines can discover counts.
func TestAdvertisedPort(t *testing.T) {
	t.Parallel()
	var listeners []net.Listener
	for _, address := range []string{"127.0.0.1:0", "0.0.0.0:0", "0.0.0.0:0"} {
		listener, err := net.Listen("tcp4", address)
		if err != nil {
			t.Fatal(err)
		}
		defer listener.Close()
		listeners = append(listeners, listener)
	}
	r, err := advertiseOption{Advertise: "x"}.newResponder(listeners, slog.New(slog.DiscardHandler))
	if err != nil || int(r.Port) != listeners[1].Addr().(*net.TCPAddr).Port {
		t.Errorf("%v %v, want the port of %s", r, err, listeners[1].Addr())
	}
	if r, err := (advertiseOption{}).newResponder(listeners, nil); r != nil || err != nil {
		t.Errorf("without the option: %v %v", r, err)
	}
}

// machine is a machine with network interfaces of its own.
type machine struct{ pid string }

func newMachine(t *testing.T) machine {
	t.Helper()
	required(t, "ip")
	holder := exec.Command(required(t, "unshare"), "--net", "--mount", "sh", "-c", "ip link set lo up && echo && exec sleep 1000")
	out, err := holder.StdoutPipe()
	if err == nil {
		err = holder.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = holder.Process.Kill()
		_ = holder.Wait()
	})
	if _, err := out.Read(make([]byte, 1)); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal("in CI, tests must be allowed to make network namespaces")
		}
		t.Skip("network namespaces are not available: run the tests as root for this one")
	}
	return machine{strconv.Itoa(holder.Process.Pid)}
}

// command prepares a run on the machine.
func (m machine) command(t *testing.T, program string, args ...string) *process {
	t.Helper()
	if program != binary {
		program = required(t, program)
	}
	enter := []string{"--target=" + m.pid, "--net", "--mount", "--", program}
	return commandOf(exec.Command(required(t, "nsenter"), append(enter, args...)...))
}

func (m machine) run(t *testing.T, program string, args ...string) string {
	t.Helper()
	r := m.command(t, program, args...).run(t)
	if r.status != 0 {
		t.Fatalf("%s %s: %s", program, args, r.err)
	}
	return r.out
}

func (m machine) ip(t *testing.T, args string) {
	t.Helper()
	m.run(t, "ip", strings.Fields(args)...)
}

// serve starts a server that is advertised, with its control listener at the returned path.
func (m machine) serve(t *testing.T, advertise string) (s *server, port, control string) {
	t.Helper()
	p := newPlace(t)
	control = filepath.Join(p.dir, "control")
	s = serve(t, m.command(t, binary, p.args("run-server", "--log-level=INFO", "--host=0.0.0.0", "--port=0", "--control-host=unix:"+control, advertise)...))
	_, port, err := net.SplitHostPort(s.addresses[0])
	if err != nil {
		t.Fatal(err)
	}
	return s, port, control
}

// avahi starts Avahi on the machine, and returns a function that prepares a run of its programs.
func (m machine) avahi(t *testing.T) func(program string, args ...string) *process {
	t.Helper()
	dir := t.TempDir()
	bus := filepath.Join(dir, "bus")
	files := map[string]string{"bus.conf": `<busconfig><type>system</type><listen>unix:path=` + bus + `</listen><auth>EXTERNAL</auth>
<policy context="default"><allow send_destination="*"/><allow own="*"/><allow user="*"/><allow receive_sender="*"/></policy></busconfig>`, "avahi.conf": "[server]\nhost-name=m" + m.pid + "\nuse-ipv6=no\n"}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	m.run(t, "mount", "-t", "tmpfs", "none", "/run")
	m.run(t, "mkdir", "/run/avahi-daemon")
	onBus := func(program string, args ...string) *process {
		p := m.command(t, program, args...)
		p.Env = append(p.Env, "DBUS_SYSTEM_BUS_ADDRESS=unix:path="+bus, "LC_ALL=C.UTF-8")
		return p
	}
	m.command(t, "dbus-daemon", "--config-file="+filepath.Join(dir, "bus.conf"), "--nofork", "--nopidfile").start(t)
	until(t, "D-Bus", func() bool {
		conn, err := net.Dial("unix", bus)
		if err == nil {
			conn.Close()
		}
		return err == nil
	})
	daemon := onBus("avahi-daemon", "--no-drop-root", "--no-chroot", "--no-rlimits", "-f", filepath.Join(dir, "avahi.conf"))
	daemon.start(t)
	until(t, "Avahi", func() bool { return strings.Contains(daemon.err.String(), "Server startup complete") })
	return onBus
}

// TestAdvertised: Avahi on another machine discovers the server as guix-daemon does, and notices
// that it stops.
func TestAdvertised(t *testing.T) {
	t.Parallel()
	required(t, "avahi-daemon")
	host, client := newMachine(t), newMachine(t)
	host.ip(t, "link add name lan0 type veth peer name lan1 netns "+client.pid)
	host.ip(t, "address add 192.0.2.7/24 dev lan0")
	client.ip(t, "address add 192.0.2.9/24 dev lan1")
	host.ip(t, "link set lan0 up")
	client.ip(t, "link set lan1 up")
	host.avahi(t) // the server shares the port with it
	onBus := client.avahi(t)
	browse := onBus("avahi-browse", "--parsable", "--resolve", publishType)
	browse.start(t)
	found := func(sign, name string) (fields []string) {
		for line := range strings.Lines(browse.out.String()) {
			// Avahi writes a space as \032.
			if f := strings.Split(strings.TrimSpace(line), ";"); f[0] == sign && strings.HasPrefix(f[3], name) {
				fields = f
			}
		}
		return fields
	}
	s, port, _ := host.serve(t, "--advertise")
	until(t, "Avahi resolves the server", func() bool { return found("=", `nar-herder\032on\032`) != nil })
	if f := found("=", "nar-herder"); f[1] != "lan1" || f[2] != "IPv4" || f[7] != "192.0.2.7" || f[8] != port {
		t.Errorf("%q, want 192.0.2.7 and port %s", f, port)
	}
	if text := client.run(t, "curl", "-sS", "http://192.0.2.7:"+port+"/nix-cache-info"); !strings.Contains(text, "StoreDir") {
		t.Errorf("the discovered server answers %q", text)
	}
	before := time.Now()
	s.stop(t, syscall.SIGTERM)
	if took := time.Since(before); took > patience/4 {
		t.Errorf("stopping took %v", took)
	}
	until(t, "Avahi notices that the server stopped", func() bool { return found("-", "nar-herder") != nil })

	taken := onBus("avahi-publish", "--service", "Office", publishType, "1")
	taken.start(t)
	until(t, "Avahi publishes the name", func() bool { return strings.Contains(taken.err.String(), "Established") })
	_, port, _ = host.serve(t, "--advertise=Office")
	until(t, "Avahi resolves the renamed server", func() bool { return found("=", `Office\032\0402\041`) != nil })
	if f := found("=", `Office\032`); f[7] != "192.0.2.7" || f[8] != port {
		t.Errorf("%q, want 192.0.2.7 and port %s", f, port)
	}
}

// TestAdvertisedLater: the server starts before the network is up.
func TestAdvertisedLater(t *testing.T) {
	t.Parallel()
	host := newMachine(t)
	host.ip(t, "link add name lan0 type veth peer name lan1")
	host.ip(t, "address add 192.0.2.7/24 dev lan0")
	host.ip(t, "link set lan1 up")
	s, _, control := host.serve(t, "--advertise")
	warned := func() bool { return strings.Contains(get(t, control, "/health").body, "advertise this server") }
	until(t, "a health warning", warned)
	if got := get(t, control, "/health/ready"); got.StatusCode != 200 {
		t.Errorf("/health/ready: %s %s", got.Status, got.body)
	}
	host.ip(t, "link set lan0 up")
	until(t, "advertised without a warning", func() bool {
		return strings.Contains(s.err.String(), "interface=lan0 addresses=[192.0.2.7]") && !warned()
	})
}
