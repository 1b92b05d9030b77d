package main

import (
	"context"
	"errors"
	"flag"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"nar-herder/internal/s3server"
	"nar-herder/internal/testlog"
)

// patience is how long a test waits for another process, beside many others.
const patience = 3 * time.Minute

const testdata = "../../testdata"

// binary is the program as shipped, without the race detector, for runs in a separate
// process. Most runs are within the tests' process: see [within].
var binary string

// racing is the program with the race detector if the tests have it: the test binary under
// another name. Only [raced] tests run it, as it starts ten times as slowly.
var racing string

// raced are the tests that run processes with the race detector. Other processes have none:
// other tests run the same code within the tests' process.
var raced = []string{"TestAttacks", "TestColdNar", "TestMirrorNars"}

// programName is the name under which the test binary runs the program.
const programName = "nar-herder"

// settle is how long a server of a test removes nothing by stored-on, instead of ten minutes.
const settle = 3 * time.Second

// hasRaceDetector reports whether the tests have the race detector.
var hasRaceDetector bool

// raceEnvironment is added to the environment of every process.
var raceEnvironment []string

// waiting is the number of concurrent tests for each processor, as tests mostly wait.
const waiting = 8

// variables are the variables that set options of the tests. They are removed from the
// environment, as runs within this process would read them.
var variables = make(map[string]string)

func TestMain(m *testing.M) {
	if address := os.Getenv(attackedVariable); address != "" {
		attackers(address)
		return
	}
	if spec := os.Getenv(goodClientVariable); spec != "" {
		address, text, _ := strings.Cut(spec, " ")
		while, err := time.ParseDuration(text)
		if err != nil {
			panic(err)
		}
		beGoodClient(address, while)
		return
	}
	settleTime = settle.String()
	if filepath.Base(os.Args[0]) == programName {
		main()
		return
	}
	// A server within this process keeps its locks when it is abandoned.
	stopTimeout = patience
	for _, entry := range os.Environ() {
		name, value, _ := strings.Cut(entry, "=")
		if strings.HasPrefix(name, environmentPrefix) && name != s3server.ProgramVariable || strings.HasPrefix(name, "LISTEN_") || name == "NOTIFY_SOCKET" {
			variables[name] = value
			os.Unsetenv(name)
		}
	}
	flag.Parse()
	if most := flag.Lookup("test.parallel"); most.Value.String() == most.DefValue {
		if err := most.Value.Set(strconv.Itoa(waiting * runtime.GOMAXPROCS(0))); err != nil {
			panic(err)
		}
	}
	os.Exit(testMain(m))
}

func testMain(m *testing.M) int {
	dir, err := os.MkdirTemp("", "nar-herder")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir)
	self, err := os.Executable()
	if err != nil {
		panic(err)
	}
	binary, racing = filepath.Join(dir, programName), filepath.Join(dir, "racing", programName)
	if err := errors.Join(os.Mkdir(filepath.Dir(racing), 0o755), os.Symlink(self, racing)); err != nil {
		panic(err)
	}
	// GOFLAGS of the machine may leave the commit out.
	build := exec.Command("go", "build", "-buildvcs=auto", "-ldflags=-w -X=main.settleTime="+settle.String(), "-o", binary, ".")
	build.Env, build.Stderr = append(os.Environ(), "CGO_ENABLED=0"), os.Stderr
	if err := build.Run(); err != nil {
		os.Stderr.WriteString("build the program: " + err.Error() + "\n")
		return 1
	}
	return m.Run()
}

// programOf returns the program that a test runs in separate processes.
func programOf(t testing.TB) string {
	name, _, _ := strings.Cut(t.Name(), "/")
	if slices.Contains(raced, name) {
		return racing
	}
	return binary
}

// required returns the path of a program. If it is missing, the test is skipped, or fails
// in CI.
func required(t *testing.T, name string) string {
	t.Helper()
	for _, dir := range append(filepath.SplitList(os.Getenv("PATH")), "/usr/sbin", "/sbin") {
		if path, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
			return path
		}
	}
	if os.Getenv("CI") == "true" {
		t.Fatalf("%s is not installed", name)
	}
	t.Skipf("%s is not installed", name)
	return ""
}

// process is a run of nar-herder or another program.
type process struct {
	*exec.Cmd // nil for a run within this process
	args      []string
	stdin     string
	cancel    context.CancelFunc
	status    int // after the end

	out, err testlog.Buffer
	ended    chan struct{} // closed
}

// within prepares a run within the tests' process. It has the race detector if the tests
// do, and their environment.
func within(args ...string) *process {
	return &process{args: args, ended: make(chan struct{})}
}

// command prepares a run in a separate process. Its environment is empty, similar to that
// of a service of Guix. It is for tests of signals, kills, descriptors, users, and the
// environment.
func command(args ...string) *process { return commandOf(exec.Command(binary, args...)) }

func commandOf(cmd *exec.Cmd) *process {
	p := &process{Cmd: cmd, args: cmd.Args, ended: make(chan struct{})}
	p.Env = append([]string{}, raceEnvironment...) // nil would mean ours
	p.Stdout, p.Stderr = &p.out, &p.err
	return p
}

func (p *process) start(t testing.TB) {
	t.Helper()
	if p.Cmd == nil {
		var ctx context.Context
		ctx, p.cancel = context.WithCancel(context.Background())
		go p.runWithin(ctx)
	} else {
		if p.Path == binary {
			p.Path = programOf(t)
		}
		if err := p.Start(); err != nil {
			t.Fatal(err)
		}
		go func() {
			_ = p.Wait()
			p.status = p.ProcessState.ExitCode()
			close(p.ended)
		}()
	}
	t.Cleanup(func() {
		if p.Cmd == nil {
			p.cancel()
		} else {
			_ = p.Process.Kill()
		}
		p.wait(t)
		if t.Failed() || strings.Contains(p.err.String(), "DATA RACE") {
			t.Errorf("%s\nstdout: %s\nstderr: %s", p.args, tail(p.out.String()), tail(p.err.String()))
		}
	})
}

func (p *process) runWithin(ctx context.Context) {
	p.status = run(ctx, p.args, strings.NewReader(p.stdin), &p.out, &p.err)
	// A process that another test starts has copies of all descriptors, and thus locks,
	// until its program runs.
	syscall.ForkLock.RLock()
	close(p.ended)
	syscall.ForkLock.RUnlock()
}

func tail(s string) string { return s[max(0, len(s)-1500):] }

// wait returns the exit status, or -1 after a signal.
func (p *process) wait(t testing.TB) int {
	t.Helper()
	select {
	case <-p.ended:
	case <-time.After(patience):
		t.Fatalf("%s is still running", p.args)
	}
	return p.status
}

var progressLine = regexp.MustCompile(`^(importing|fetching|converting|exporting|sweeping|checking|checking closures|looking for items without nars|verifying|copying|listing|signing): [0-9]+ `)

// result is the result of a run.
type result struct {
	out, err string
	status   int
}

func runProgram(t testing.TB, args ...string) result {
	t.Helper()
	return within(args...).run(t)
}

func (p *process) run(t testing.TB) result {
	t.Helper()
	p.start(t)
	status := p.wait(t)
	// Long operations print their progress.
	var stderr strings.Builder
	for line := range strings.Lines(p.err.String()) {
		if !progressLine.MatchString(line) {
			stderr.WriteString(line)
		}
	}
	return result{p.out.String(), stderr.String(), status}
}

// succeed runs the program, which must not fail, and returns its output.
func succeed(t testing.TB, args ...string) string {
	t.Helper()
	r := runProgram(t, args...)
	if r.status != 0 || r.err != "" {
		t.Fatalf("%s: status %d, stderr %s", args, r.status, r.err)
	}
	return r.out
}

// fail runs the program, which must fail with one line that has all wanted texts.
func fail(t testing.TB, args []string, wanted ...string) {
	t.Helper()
	failWith(t, 1, args, wanted...)
}

// unusable is fail for commands that can't determine their answer, as the database can't be
// used.
func unusable(t testing.TB, args []string, wanted ...string) {
	t.Helper()
	status := int(statusFailed)
	if args[0] == "check" || args[0] == "copy-storage" {
		status = int(statusUnknown)
	}
	failWith(t, status, args, wanted...)
}

// misuse is fail for invalid arguments.
func misuse(t testing.TB, args []string, wanted ...string) {
	t.Helper()
	failWith(t, statusUsage, args, wanted...)
}

func failWith(t testing.TB, status int, args []string, wanted ...string) {
	t.Helper()
	r := runProgram(t, args...)
	if r.status != status || r.out != "" {
		t.Errorf("%q: status %d, stdout %q", args, r.status, r.out)
	}
	if !strings.HasPrefix(r.err, "nar-herder: ") || strings.Count(r.err, "\n") != 1 || !strings.HasSuffix(r.err, "\n") {
		t.Errorf("%q: stderr is not one line of the program: %q", args, r.err)
	}
	for _, text := range wanted {
		if !strings.Contains(r.err, text) {
			t.Errorf("%q: stderr does not have %q: %s", args, text, r.err)
		}
	}
}

// place has the files of a server.
type place struct{ dir, database, storage string }

func newPlace(t testing.TB) place {
	t.Helper()
	dir := t.TempDir()
	p := place{dir, filepath.Join(dir, "index.db"), filepath.Join(dir, "storage")}
	if err := os.Mkdir(p.storage, 0o755); err != nil {
		t.Fatal(err)
	}
	return p
}

// args returns the command line with the options that name the place.
func (p place) args(command string, more ...string) []string {
	args := []string{command, "--database=" + p.database, "--storage=" + p.storage}
	if command == "run-server" && !strings.Contains(strings.Join(more, " "), "--database-dump=") {
		args = append(args, "--database-dump="+filepath.Join(p.dir, "dump.db"))
	}
	return append(args, more...)
}

// imports adds all items below the names, and keeps the files.
func (p place) imports(t testing.TB, names ...string) {
	t.Helper()
	succeed(t, p.args("import", append([]string{"--keep"}, names...)...)...)
}

// server is a run of run-server that listens.
type server struct {
	*process
	addresses []string
}

var listeningLine = regexp.MustCompile(`(?m)^time=\S+ level=INFO msg=listening address=(\S*)$`)

// serve starts the server within this process, on a free port, and waits until it listens.
func (p place) serve(t testing.TB, more ...string) *server {
	t.Helper()
	return serve(t, within(p.serverArgs(more...)...))
}

// serveProcess is serve in a separate process.
func (p place) serveProcess(t testing.TB, more ...string) *server {
	t.Helper()
	return serve(t, command(p.serverArgs(more...)...))
}

func (p place) serverArgs(more ...string) []string {
	args := p.args("run-server", more...)
	if !strings.Contains(strings.Join(more, " "), "--port") {
		args = append(args, "--port=0")
	}
	return args
}

func serve(t testing.TB, p *process) *server {
	t.Helper()
	s := &server{process: p}
	p.start(t)
	until(t, "the server listens", func() bool {
		select {
		case <-p.ended:
			t.Fatalf("the server has ended: %s", p.err.String())
		default:
		}
		return strings.Contains(p.err.String(), "msg=listening")
	})
	for _, match := range listeningLine.FindAllStringSubmatch(p.err.String(), -1) {
		s.addresses = append(s.addresses, match[1])
	}
	return s
}

// stop stops the server, a process with the signal, and checks that it ended cleanly.
func (s *server) stop(t testing.TB, signal os.Signal) {
	t.Helper()
	if s.Cmd == nil {
		s.cancel()
	} else if err := s.Process.Signal(signal); err != nil {
		t.Fatal(err)
	}
	if status := s.wait(t); status != 0 {
		t.Errorf("exit status %d", status)
	}
}

// kill kills the process of a server.
func (s *server) kill(t testing.TB) {
	t.Helper()
	if err := s.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	<-s.ended
}

// longestPause is the longest pause between two polls of until.
const longestPause = 100 * time.Millisecond

// until waits for an effect of another process or goroutine. It polls less and less often,
// and polls at most half of the time.
func until(t testing.TB, what string, condition func() bool) {
	t.Helper()
	poll(t, what, patience, longestPause, condition)
}

// catch is until for a condition that may not last.
func catch(t testing.TB, what string, condition func() bool) {
	t.Helper()
	poll(t, what, patience, time.Millisecond, condition)
}

func poll(t testing.TB, what string, limit, longestPause time.Duration, condition func() bool) {
	t.Helper()
	end := time.Now().Add(limit)
	for pause := time.Millisecond; ; pause = min(2*pause, longestPause) {
		asked := time.Now()
		if condition() {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("timeout waiting for: %s", what)
		}
		time.Sleep(max(pause, min(time.Since(asked), 2*longestPause)))
	}
}

// answer is the answer of a server.
type answer struct {
	*http.Response
	body string
}

// get sends a request to an address, HOST:PORT or the path of a socket.
func get(t testing.TB, address, target string) answer {
	t.Helper()
	a, err := tryGet(address, target)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func tryGet(address, target string) (answer, error) { return ask(address, http.MethodGet, target, nil) }

// request is get with a method and with names and values of header fields.
func request(t testing.TB, address, method, target string, header ...string) answer {
	t.Helper()
	h := make(http.Header)
	for i := 0; i+1 < len(header); i += 2 {
		h.Set(header[i], header[i+1])
	}
	a, err := ask(address, method, target, h)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// ask sends a request, and doesn't follow redirects.
func ask(address, method, target string, header http.Header) (answer, error) {
	network := "tcp"
	if strings.HasPrefix(address, "/") {
		network = "unix"
	}
	transport := &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var dialer net.Dialer
			return dialer.DialContext(ctx, network, address)
		},
		DisableCompression: true,
	}
	defer transport.CloseIdleConnections()
	client := http.Client{Transport: transport, Timeout: patience, CheckRedirect: func(*http.Request, []*http.Request) error {
		return http.ErrUseLastResponse
	}}
	r, err := http.NewRequest(method, "http://herder.example"+target, nil)
	if err != nil {
		return answer{}, err
	}
	if header != nil {
		r.Header = header
	}
	response, err := client.Do(r)
	if err != nil {
		return answer{}, err
	}
	defer response.Body.Close()
	// The race detector checks each byte of each copy.
	var body strings.Builder
	body.Grow(int(max(response.ContentLength, 0)))
	_, err = io.Copy(&body, response.Body)
	return answer{response, body.String()}, err
}

// read returns the content of a file.
func read(t testing.TB, parts ...string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(parts...))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}
