package main

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"nar-herder/internal/mirrortest"
	"nar-herder/narinfo"
)

// metricWith returns the value of a metric with labels, as in the text format.
func metricWith(t testing.TB, address, name string) float64 {
	t.Helper()
	for line := range strings.Lines(get(t, address, "/metrics").body) {
		if text, ok := strings.CutPrefix(line, name+" "); ok {
			value, err := strconv.ParseFloat(strings.TrimSpace(text), 64)
			if err != nil {
				t.Fatal(err)
			}
			return value
		}
	}
	t.Fatalf("no metric %s", name)
	return 0
}

// narsSent returns the number of requests that a server has answered with a nar.
func narsSent(t testing.TB, address string) float64 {
	t.Helper()
	return metricWith(t, address, `narherder_http_requests_total{method="GET",route="/nar/",status="200"}`) +
		metricWith(t, address, `narherder_http_requests_total{method="GET",route="/nar/",status="206"}`)
}

// pageSize is the size of the pages of a large, sparse file: the first bytes of each have
// its number, and the rest are zeros.
const pageSize = 1 << 20

// mark returns the beginning of the Nth page.
func mark(n int64) []byte { return fmt.Appendf(nil, "page %011d", n) }

// coldNar makes a source with one large nar, and a directory with its narinfo.
func coldNar(t *testing.T, size int64) (p place, directory, target string) {
	t.Helper()
	p = newPlace(t)
	directory = filepath.Join(p.dir, "source")
	base := strings.Repeat("0", 31) + "1-cold"
	if err := os.MkdirAll(filepath.Join(directory, "nar"), 0o755); err != nil {
		t.Fatal(err)
	}
	file, err := os.Create(filepath.Join(directory, "nar", base))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	sum := sha256.New()
	zeros := make([]byte, pageSize)
	for n := range size / pageSize {
		_, _ = sum.Write(mark(n))
		_, _ = sum.Write(zeros[len(mark(n)):])
		if _, err := file.WriteAt(mark(n), n*pageSize); err != nil {
			t.Fatal(err)
		}
	}
	if err := file.Truncate(size); err != nil {
		t.Fatal(err)
	}
	text := mirrortest.Sign(fmt.Appendf(nil, "StorePath: /gnu/store/%s\nURL: nar/%s\nCompression: none\nFileSize: %d\nNarHash: %s\nNarSize: %d\nReferences: \n",
		base, base, size, narinfo.NarHash(sum.Sum(nil)), size))
	if err := os.WriteFile(filepath.Join(directory, base[:32]+".narinfo"), text, 0o644); err != nil {
		t.Fatal(err)
	}
	return p, directory, "/nar/" + base
}

// coldSize returns the size of the nar in TestColdNar: small enough for each run of the
// tests, or NAR_HERDER_COLD_NAR bytes.
func coldSize(t *testing.T) int64 {
	if text := variables["NAR_HERDER_COLD_NAR"]; text != "" {
		size, err := strconv.ParseInt(text, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		return size / pageSize * pageSize
	}
	return 32 << 20
}

// TestColdNar requests a nar that the mirror doesn't have yet, with 100 clients at once.
func TestColdNar(t *testing.T) {
	t.Parallel()
	const clients = 100
	size := coldSize(t)
	p, directory, target := coldNar(t, size)
	p.imports(t, directory)
	from := p.serve(t, "--log-level=INFO")
	q := newPlace(t)
	succeed(t, "import", "--narinfos-only", "--database="+q.database, directory)
	mirror := q.serveProcess(t, "--log-level=INFO", "--mirror=http://"+from.addresses[0], "--mirror-nars=on-demand")
	begun := time.Now()
	var asking sync.WaitGroup
	for range clients {
		asking.Go(func() {
			if err := checkPages("http://"+mirror.addresses[0]+target, size); err != nil {
				t.Error(err)
			}
		})
	}
	asking.Wait()
	took := time.Since(begun)
	if got := narsSent(t, from.addresses[0]); got != 1 {
		t.Errorf("the source got %v requests", got)
	}
	until(t, "it is stored", func() bool { return metric(t, mirror.addresses[0], "narherder_stored_nars") == "1" })
	if got := metric(t, mirror.addresses[0], "narherder_mirror_nars_fetched_bytes_total"); got != strconv.FormatFloat(float64(size), 'g', -1, 64) {
		t.Errorf("%s bytes fetched", got)
	}
	memory := peakMemory(t, mirror.Process.Pid)
	t.Logf("%d clients got %d MiB each in %v, %.0f MB/s together; the mirror used at most %.0f MB", clients, size>>20, took,
		float64(clients*size)/1e6/took.Seconds(), float64(memory)/1e6)
	// The race detector uses several times as much.
	if !hasRaceDetector && memory > 200e6 {
		t.Errorf("the mirror used %d bytes of memory", memory)
	}
	// The mirror now sends its own copy.
	if err := checkPages("http://"+mirror.addresses[0]+target, size); err != nil {
		t.Error(err)
	}
	if got := narsSent(t, from.addresses[0]); got != 1 {
		t.Errorf("the source got %v requests", got)
	}
	succeed(t, q.args("check", "--verify")...)
}

// checkPages downloads a file of pages, and checks all bytes.
func checkPages(url string, size int64) error {
	response, err := http.Get(url)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK || response.ContentLength != size {
		return fmt.Errorf("%s, %d bytes", response.Status, response.ContentLength)
	}
	got := make([]byte, pageSize)
	// Checksums, since the race detector makes comparisons slow.
	table := crc32.MakeTable(crc32.Castagnoli)
	zeros := crc32.Checksum(got, table)
	for n := range size / pageSize {
		if _, err := io.ReadFull(response.Body, got); err != nil {
			return fmt.Errorf("page %d: %w", n, err)
		}
		begin := got[:len(mark(n))]
		marked := bytes.Equal(begin, mark(n))
		clear(begin)
		if !marked || crc32.Checksum(got, table) != zeros {
			return fmt.Errorf("page %d is wrong", n)
		}
	}
	if n, err := io.Copy(io.Discard, response.Body); n != 0 || err != nil {
		return fmt.Errorf("%d bytes too many, %w", n, err)
	}
	return nil
}

// peakMemory returns the peak resident memory of a process in bytes.
func peakMemory(t *testing.T, pid int) int64 {
	t.Helper()
	file, err := os.Open(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	for lines := bufio.NewScanner(file); lines.Scan(); {
		var kilobytes int64
		if _, err := fmt.Sscanf(lines.Text(), "VmHWM: %d kB", &kilobytes); err == nil {
			return kilobytes << 10
		}
	}
	t.Fatal("no VmHWM")
	return 0
}

// TestMirrorNars fetches all nars of another instance; both it and the mirror are killed
// and restarted meanwhile.
func TestMirrorNars(t *testing.T) {
	t.Parallel()
	p, q := newPlace(t), newPlace(t)
	source := filepath.Join(p.dir, "source")
	texts := generate(t, source, 150)
	p.imports(t, source)
	succeed(t, "import", "--narinfos-only", "--database="+q.database, source)
	host := ownHost()
	serveSource := func() *server {
		return serve(t, command(p.args("run-server", "--host="+host, "--port="+instancePort, "--log-level=INFO")...))
	}
	serveMirror := func() *server {
		return q.serveProcess(t, "--log-level=INFO", "--mirror=http://"+host+":"+instancePort, "--mirror-bandwidth=4M", "--mirror-fetchers=3")
	}
	from, mirror := serveSource(), serveMirror()
	for range 4 {
		stored := metricWith(t, mirror.addresses[0], "narherder_stored_nars")
		until(t, "more nars are fetched", func() bool {
			return metricWith(t, mirror.addresses[0], "narherder_stored_nars") > min(stored+5, 149)
		})
		killed := &mirror
		if rand.IntN(2) == 0 {
			killed = &from
		}
		(*killed).kill(t)
		if killed == &from {
			from = serveSource()
		} else {
			mirror = serveMirror()
		}
	}
	until(t, "all are stored", func() bool { return metricWith(t, mirror.addresses[0], "narherder_stored_nars") == 150 })
	until(t, "nothing is in flight", func() bool { return metricWith(t, mirror.addresses[0], "narherder_mirror_nars_in_flight") == 0 })
	mirror.stop(t, os.Interrupt)
	from.stop(t, os.Interrupt)
	out := succeed(t, q.args("check", "--verify")...)
	if strings.Contains(out, "temporary") && !strings.Contains(out, "0 temporary") {
		t.Errorf("check: %s", out)
	}
	for _, text := range texts {
		n, name := narOf(t, text)
		if got := sha256.Sum256([]byte(read(t, q.storage, name))); narinfo.NarHash(got) != n.NarHash {
			t.Errorf("%s: %s", name, hex.EncodeToString(got[:]))
		}
	}
}

// TestMirrorStops: a mirror stops at once while clients wait for a slow nar.
func TestMirrorStops(t *testing.T) {
	t.Parallel()
	p, directory, target := coldNar(t, 4<<20)
	p.imports(t, directory)
	from := p.serve(t, "--log-level=INFO")
	q := newPlace(t)
	succeed(t, "import", "--narinfos-only", "--database="+q.database, directory)
	mirror := q.serve(t, "--log-level=INFO", "--mirror=http://"+from.addresses[0], "--mirror-bandwidth=100K")
	until(t, "the nar is being fetched", func() bool { return metricWith(t, mirror.addresses[0], "narherder_mirror_nars_in_flight") == 1 })
	mirror.stop(t, os.Interrupt)
	entries, err := os.ReadDir(filepath.Join(q.storage, ".nar-herder-spool"))
	if err != nil || len(entries) != 1 {
		t.Errorf("the spool: %v, %v", entries, err)
	}
	// The partial download is used.
	mirror = q.serve(t, "--log-level=INFO", "--mirror=http://"+from.addresses[0])
	until(t, "it is stored", func() bool { return metricWith(t, mirror.addresses[0], "narherder_stored_nars") == 1 })
	if err := checkPages("http://"+mirror.addresses[0]+target, 4<<20); err != nil {
		t.Error(err)
	}
}

// TestMirrorStreams: a mirror without a storage, and one that stores nothing.
func TestMirrorStreams(t *testing.T) {
	t.Parallel()
	p, directory, target := coldNar(t, 4<<20)
	p.imports(t, directory)
	from := p.serve(t, "--log-level=INFO")
	for _, stores := range []bool{false, true} {
		q := newPlace(t)
		succeed(t, "import", "--narinfos-only", "--database="+q.database, directory)
		args := []string{"run-server", "--port=0", "--database=" + q.database, "--database-dump=" + q.dumpFile(), "--log-level=INFO", "--mirror=http://" + from.addresses[0]}
		if stores {
			args = append(args, "--storage="+q.storage, "--mirror-nars=none")
		}
		mirror := serve(t, within(args...))
		for range 2 {
			if err := checkPages("http://"+mirror.addresses[0]+target, 4<<20); err != nil {
				t.Error(err)
			}
		}
		if entries, err := os.ReadDir(filepath.Join(q.storage, "nar")); !os.IsNotExist(err) {
			t.Errorf("the storage: %v, %v", entries, err)
		}
	}
	if got := narsSent(t, from.addresses[0]); got != 4 {
		t.Errorf("the source got %v requests", got)
	}
}

// TestMirrorBootstrap: a mirror without a database bootstraps and follows, and fetches
// the nars of old and of new items.
func TestMirrorBootstrap(t *testing.T) {
	t.Parallel()
	p, q := newPlace(t), newPlace(t)
	source := filepath.Join(p.dir, "source")
	texts := generate(t, source, 30)
	later := filepath.Join(p.dir, "later")
	for target := range texts {
		// One item is imported later.
		n, name := narOf(t, texts[target])
		if err := os.MkdirAll(filepath.Join(later, "nar"), 0o755); err != nil {
			t.Fatal(err)
		}
		for _, file := range []string{name, n.StorePath.Hash.String() + ".narinfo"} {
			if err := os.Rename(filepath.Join(source, file), filepath.Join(later, file)); err != nil {
				t.Fatal(err)
			}
		}
		break
	}
	p.imports(t, source)
	from := p.serve(t, "--log-level=INFO", "--database-dump-interval=1s")
	mirror := q.serve(t, "--log-level=INFO", "--mirror=http://"+from.addresses[0])
	stored := func(count float64) func() bool {
		return func() bool {
			a, err := tryGet(mirror.addresses[0], "/metrics")
			return err == nil && strings.Contains(a.body, fmt.Sprintf("\nnarherder_stored_nars %v\n", count))
		}
	}
	until(t, "all are stored", stored(29))
	p.imports(t, later)
	until(t, "the later one is stored", stored(30))
	until(t, "nothing is in flight", func() bool { return metricWith(t, mirror.addresses[0], "narherder_mirror_nars_in_flight") == 0 })
	if got := narsSent(t, from.addresses[0]); got != 30 {
		t.Errorf("the source got %v requests", got)
	}
	for _, text := range texts {
		n, name := narOf(t, text)
		if got := sha256.Sum256([]byte(read(t, q.storage, name))); narinfo.NarHash(got) != n.NarHash {
			t.Errorf("%s: %x", name, got)
		}
	}
}
