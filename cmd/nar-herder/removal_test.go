package main

import (
	"crypto/sha256"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"nar-herder/narinfo"
)

// instances are servers with the same items that name each other as criteria.
type instances struct {
	t       *testing.T
	texts   map[string]string
	places  []place
	hosts   []string
	source  string
	options [][]string
	servers []*server
	run     func(args ...string) *process // [within] or [command]
}

// newInstances starts count instances with the same nars. Each may remove the nars that the
// next instances of the topology have stored.
func newInstances(t *testing.T, run func(args ...string) *process, count, nars int, limit int64, next func(i int) []int) *instances {
	t.Helper()
	in := &instances{t: t, run: run, options: make([][]string, count), servers: make([]*server, count)}
	source := filepath.Join(t.TempDir(), "source")
	in.texts, in.source = generate(t, source, nars), source
	for range count {
		p := newPlace(t)
		p.imports(t, source)
		in.places = append(in.places, p)
		in.hosts = append(in.hosts, ownHost())
	}
	for i := range count {
		in.options[i] = []string{"--host=" + in.hosts[i], "--port=" + instancePort, "--log-level=INFO", "--storage-check-interval=1s", fmt.Sprintf("--storage-limit=%dB", limit)}
		for _, n := range next(i) {
			in.options[i] = append(in.options[i], "--storage-nar-removal-criteria=stored-on=http://"+in.address(n))
		}
	}
	for i := range count {
		in.start(i)
	}
	return in
}

func (in *instances) start(i int) {
	in.t.Helper()
	in.servers[i] = serve(in.t, in.run(in.places[i].args("run-server", in.options[i]...)...))
}

func (in *instances) kill(i int) {
	in.t.Helper()
	in.servers[i].kill(in.t)
}

func (in *instances) address(i int) string { return in.hosts[i] + ":" + instancePort }

// instancePort is the port of all instances: each restarts at its own address.
const instancePort = "8734"

// ownHost returns a loopback address that no other server of the tests has.
func ownHost() string {
	return fmt.Sprintf("127.%d.%d.%d", 1+rand.IntN(254), rand.IntN(256), 1+rand.IntN(254))
}

// narOf returns a narinfo and the name of its nar in a storage.
func narOf(t *testing.T, text string) (n *narinfo.Narinfo, name string) {
	t.Helper()
	n, err := narinfo.Parse([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	if name, err = n.Files[0].Path(); err != nil {
		t.Fatal(err)
	}
	return n, name
}

// copies counts the nars of each item in all storages. No item may lose its last one.
func (in *instances) copies() (total int) {
	in.t.Helper()
	for target, text := range in.texts {
		_, name := narOf(in.t, text)
		count := 0
		for _, p := range in.places {
			if _, err := os.Stat(filepath.Join(p.storage, name)); err == nil {
				count++
			}
		}
		if count == 0 {
			in.t.Errorf("%s is lost on all instances", target)
		}
		total += count
	}
	return total
}

// checkServed requests each narinfo and its nar from each instance.
func (in *instances) checkServed() {
	in.t.Helper()
	for i := range in.servers {
		for target, text := range in.texts {
			if got := get(in.t, in.address(i), target); got.StatusCode != 200 || got.body != text {
				in.t.Errorf("instance %d, %s: %s", i, target, got.Status)
			}
			n, _ := narOf(in.t, text)
			got := get(in.t, in.address(i), "/"+n.Files[0].URL)
			if got.StatusCode != 200 || narinfo.NarHash(sha256.Sum256([]byte(got.body))) != n.NarHash {
				in.t.Errorf("instance %d, /%s: %s, %d bytes", i, n.Files[0].URL, got.Status, len(got.body))
			}
		}
	}
}

// usageBelow returns the disk usage of all files below a directory, in bytes.
func usageBelow(t *testing.T, dir string) (sum int64) {
	t.Helper()
	err := filepath.WalkDir(dir, func(name string, entry fs.DirEntry, err error) error {
		if err == nil && entry.IsDir() {
			sum += usage(t, name)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return sum
}

// metric returns the value of a metric without labels.
func metric(t *testing.T, address, name string) string {
	t.Helper()
	for line := range strings.Lines(get(t, address, "/metrics").body) {
		if value, ok := strings.CutPrefix(line, name+" "); ok {
			return strings.TrimSpace(value)
		}
	}
	t.Errorf("no metric %s", name)
	return ""
}

// kills returns how often a test kills processes: NAR_HERDER_KILLS, or a default.
func kills(t *testing.T) int {
	if text := variables["NAR_HERDER_KILLS"]; text != "" {
		n, err := strconv.Atoi(text)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	return 6
}

// TestRemovalKilled kills instances that depend on each other and are above their limits
// while they remove nars.
func TestRemovalKilled(t *testing.T) {
	t.Parallel()
	const nars = 60
	// Parallel subtests would start after all other tests, and run alone.
	var running sync.WaitGroup
	defer running.Wait()
	for name, test := range map[string]struct {
		count int
		next  func(i int) []int
	}{
		"one on the other":     {2, func(i int) []int { return []int{1}[:1-i] }},
		"each on the other":    {2, func(i int) []int { return []int{1 - i} }},
		"ring of three":        {3, func(i int) []int { return []int{(i + 1) % 3} }},
		"each of three on all": {3, func(i int) []int { return []int{(i + 1) % 3, (i + 2) % 3} }},
	} {
		running.Go(func() {
			t.Run(name, func(t *testing.T) {
				// The limit is a third of the nars.
				in := newInstances(t, command, test.count, nars, 1<<20, test.next)
				for range kills(t) {
					time.Sleep(time.Duration(rand.Int64N(int64(2 * settle)))) // removal starts after half of this
					i := rand.IntN(test.count)
					in.kill(i)
					in.copies()
					if rand.IntN(3) == 0 {
						// Import removed items again, so that there is more to
						// remove.
						in.places[i].imports(t, in.source)
					}
					in.start(i)
				}
				in.copies()
				// In each case, the first instance may depend on another.
				until(t, "it removes", func() bool { return in.copies() < test.count*nars })
				in.checkServed()
				t.Logf("%d copies of %d nars are left on %d instances", in.copies(), nars, test.count)
				for _, p := range in.places {
					until(t, "the pending deletes of the last kill are done", func() bool { return count(t, p.database, "SELECT count(*) FROM leftovers") == 0 })
				}
				for i := range in.servers {
					in.servers[i].stop(t, syscall.SIGTERM)
				}
				for _, p := range in.places {
					in.checkPlace(p)
				}
			})
		})
	}
}

// checkPlace compares a storage with the stored files in its index.
func (in *instances) checkPlace(p place) {
	in.t.Helper()
	listed := succeed(in.t, "list", "--database="+p.database, "--json")
	for _, text := range in.texts {
		n, name := narOf(in.t, text)
		_, err := os.Stat(filepath.Join(p.storage, name))
		var line string
		for candidate := range strings.Lines(listed) {
			if strings.Contains(candidate, n.StorePath.String()) {
				line = candidate
			}
		}
		if recorded := strings.Contains(line, `"stored":true`); line == "" || recorded != (err == nil) {
			in.t.Errorf("%s: recorded %v, exists %v", name, recorded, err == nil)
		}
	}
}

// TestRemoval checks that a limit is kept, and what is reported if it can't be.
func TestRemoval(t *testing.T) {
	t.Parallel()
	const nars, limit = 40, 600 << 10
	in := newInstances(t, within, 2, nars, limit, func(i int) []int { return []int{1}[:1-i] })
	until(t, "the limit is kept", func() bool { return usageBelow(t, in.places[0].storage) <= limit })
	in.copies()
	if used := usageBelow(t, in.places[0].storage); used < limit-100<<10 {
		t.Errorf("%d of %d bytes are left: more than necessary was removed", used, limit)
	}
	in.checkServed()
	if metric(t, in.address(0), "narherder_removal_nars_total") == "0" {
		t.Error("the metrics have no removal")
	}
	// The other instance has no criterion, so it can't keep its limit and reports that.
	until(t, "the health warns", func() bool {
		return strings.Contains(get(t, in.address(1), "/health").body, "above its limit")
	})
	if got := get(t, in.address(1), "/health"); got.StatusCode != 200 {
		t.Errorf("unready because of a limit that is not kept: %s %s", got.Status, got.body)
	}
	if metric(t, in.address(1), "narherder_storage_excess_bytes") == "0" {
		t.Error("the metrics have no excess")
	}
	if log := in.servers[1].err.String(); !strings.Contains(log, "no --storage-nar-removal-criteria") || strings.Count(log, "level=ERROR") != 1 {
		t.Errorf("log: %s", log)
	}
	// A lower limit would remove more.
	plan := func(status int, limit string, wants ...string) {
		t.Helper()
		before := in.copies()
		got := runProgram(t, in.places[0].args("plan-removal", "--storage-limit="+limit, "--storage-nar-removal-criteria=stored-on=http://"+in.address(1))...)
		for _, want := range wants {
			if got.status != status || !strings.Contains(got.out, want) {
				t.Errorf("status %d, %s%s; want %d, %q", got.status, got.out, got.err, status, want)
			}
		}
		if after := in.copies(); after != before {
			t.Errorf("%d copies became %d by a plan", before, after)
		}
	}
	plan(0, "10K", "would remove /gnu/store/", ": stored-on=http://"+in.address(1)+"\n", "nars would be removed and 0 items withdrawn")
	plan(0, "1G", "0 nars would be removed")
	if log := in.servers[0].err.String(); !strings.Contains(log, `msg="removed a nar that another instance has" item=`) {
		t.Errorf("no line about an item: %s", log)
	}
	// A range of the nar, and a HEAD request.
	var removed *narinfo.Narinfo
	for _, text := range in.texts {
		n, name := narOf(t, text)
		if _, err := os.Stat(filepath.Join(in.places[0].storage, name)); err != nil {
			removed = n
		}
	}
	whole := get(t, in.address(1), "/"+removed.Files[0].URL).body
	part := request(t, in.address(0), "GET", "/"+removed.Files[0].URL, "Range", "bytes=100-199")
	if part.StatusCode != 206 || part.body != whole[100:200] || part.Header.Get("Content-Range") != fmt.Sprintf("bytes 100-199/%d", len(whole)) {
		t.Errorf("part: %s %v", part.Status, part.Header)
	}
	if head := request(t, in.address(0), "HEAD", "/"+removed.Files[0].URL); head.StatusCode != 200 || head.ContentLength != int64(len(whole)) {
		t.Errorf("head: %s %v", head.Status, head.Header)
	}
	// If the other instance is down, the answer is not 404.
	in.servers[1].stop(t, syscall.SIGTERM)
	plan(2, "10K", "could not be asked", "0 nars would be removed")
	if got := get(t, in.address(0), "/"+removed.Files[0].URL); got.StatusCode != 502 {
		t.Errorf("with the other down: %s", got.Status)
	}
	in.start(1)
	until(t, "it is back", func() bool { return get(t, in.address(0), "/"+removed.Files[0].URL).body == whole })
	// With the option, clients are redirected.
	in.servers[0].stop(t, syscall.SIGTERM)
	in.options[0] = append(in.options[0], "--serve-remote-nars=redirect")
	in.start(0)
	got := request(t, in.address(0), "GET", "/"+removed.Files[0].URL)
	if got.StatusCode != 302 || got.Header.Get("Location") != "http://"+in.address(1)+"/"+removed.Files[0].URL {
		t.Errorf("redirect: %s %v", got.Status, got.Header)
	}
}

// TestRemovalOnSelf: an instance with itself as the criterion.
func TestRemovalOnSelf(t *testing.T) {
	t.Parallel()
	in := newInstances(t, within, 1, 20, 0, func(int) []int { return []int{0} })
	until(t, "it is noticed", func() bool { return strings.Contains(in.servers[0].err.String(), "this very instance") })
	if copies := in.copies(); copies != 20 {
		t.Errorf("%d of 20 are left", copies)
	}
	until(t, "the health warns", func() bool { return strings.Contains(get(t, in.address(0), "/health").body, "above its limit") })
}

// TestRemovalSharedStorage: two instances with separate indexes on one directory.
func TestRemovalSharedStorage(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	source := filepath.Join(p.dir, "source")
	texts := generate(t, source, 20)
	p.imports(t, source)
	other := newPlace(t)
	other.storage = p.storage
	succeed(t, "import", "--narinfos-only", "--database="+other.database, source) // without nars
	b := other.serve(t, "--log-level=INFO", "--storage-read-only")
	a := p.serve(t, "--log-level=INFO", "--storage-check-interval=1s", "--storage-limit=0", "--storage-nar-removal-criteria=stored-on=http://"+b.addresses[0])
	until(t, "it is noticed", func() bool { return strings.Contains(a.err.String(), "this very storage") })
	for _, text := range texts {
		_, name := narOf(t, text)
		if _, err := os.Stat(filepath.Join(p.storage, name)); err != nil {
			t.Error(err)
		}
	}
}

// TestHardLimit: imports that would exceed the hard limit are refused.
func TestHardLimit(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	source := filepath.Join(p.dir, "source")
	texts := generate(t, source, 30)
	s := p.serve(t, "--log-level=INFO", "--storage-hard-limit=300K")
	// Files that are being written during the scan count twice.
	until(t, "the first scan", func() bool { return metric(t, s.addresses[0], "narherder_storage_usage_bytes") != "0" })
	got := runProgram(t, p.args("import", "--keep", source)...)
	if got.status != 1 || !strings.Contains(got.err, "hard limit") || !strings.Contains(got.err, "--storage-hard-limit") {
		t.Errorf("%+v", got)
	}
	used := usageBelow(t, p.storage)
	if used > 300<<10 || used < 200<<10 {
		t.Errorf("%d of %d bytes are used", used, 300<<10)
	}
	served := 0
	for target, text := range texts {
		n, _ := narOf(t, text)
		switch narinfoAnswer := get(t, s.addresses[0], target); narinfoAnswer.StatusCode {
		case 200:
			served++
			if got := get(t, s.addresses[0], "/"+n.Files[0].URL); got.StatusCode != 200 {
				t.Errorf("%s: %s", target, got.Status)
			}
		case 404:
		default:
			t.Errorf("%s: %s", target, narinfoAnswer.Status)
		}
	}
	if served == 0 || served == len(texts) {
		t.Errorf("%d of %d were imported", served, len(texts))
	}
	s.stop(t, syscall.SIGTERM)
	// Without a limit, the others are imported.
	p.serve(t, "--log-level=INFO")
	p.imports(t, source)
}
