package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"nar-herder/mirror/health"
	"nar-herder/narinfo"
	"nar-herder/storage/index"
)

const (
	// mirrorWait bounds each wait for a mirror.
	mirrorWait = 15 * time.Minute
	// healthEvery and probeEvery are the intervals of requests to it meanwhile.
	healthEvery = 20 * time.Millisecond
	probeEvery  = time.Millisecond
	// mirrorMemory is the bar for the resident memory of a mirror, in MB.
	mirrorMemory = 200
	// itemRoom is more than the space of an item in all files at the same time: two
	// indexes, the dump in three forms, and curl's copy.
	itemRoom = 24 << 10
	// itemAge is the time between two items at the source: a million in a year.
	itemAge = 30 * time.Second
	// liveNar is the size of the nars that are imported one at a time.
	liveNar = 100 << 10
	// settleFor is a pause before that, after the mirror has added many items.
	settleFor = 2 * time.Second
)

// mirroring is a source with its mirror.
type mirroring struct {
	b    *bench
	work string
	made *generator
	last string // hash of the last item at the source

	source         *server
	sourceDatabase string
	sourceStorage  string
	dump           string

	mirrorDatabase string
}

// mirror measures how fast a mirror starts, catches up and follows, and how it serves a nar that
// it does not have yet to many clients.
func (b *bench) mirror() error {
	m, done, err := b.newMirroring()
	if err != nil {
		return err
	}
	defer done()
	for _, part := range []func() error{m.fromNothing, m.catchUp, m.importEach, m.askForCold} {
		if err := part(); err != nil {
			return err
		}
	}
	return nil
}

// newMirroring makes the items, and starts the source. done ends it.
func (b *bench) newMirroring() (m *mirroring, done func(), err error) {
	work, err := os.MkdirTemp(b.work, "mirror-")
	if err != nil {
		return nil, nil, err
	}
	defer func() {
		if err != nil {
			os.RemoveAll(work)
		}
	}()
	if err := ensureSpace(work, int64(b.items+b.changes)*itemRoom+3*b.coldNar+int64(b.imports)*liveNar); err != nil {
		return nil, nil, err
	}
	m = &mirroring{
		b: b, work: work, made: newGenerator(b.seed),
		sourceDatabase: filepath.Join(work, "source", "nar_herder.db"), sourceStorage: filepath.Join(work, "source", "storage"),
		dump:           filepath.Join(work, "source", "dump.db"),
		mirrorDatabase: filepath.Join(work, "mirror", "nar_herder.db"),
	}
	if err := os.MkdirAll(m.sourceStorage, 0o755); err != nil {
		return nil, nil, err
	}
	b.say("making %d items", b.items)
	if err := m.addItems(b.items, time.Now().Add(-time.Duration(b.items)*itemAge), itemAge); err != nil {
		return nil, nil, err
	}
	if err := m.makeDump(); err != nil {
		return nil, nil, err
	}
	if m.source, err = b.narHerder(m.sourceDatabase, m.sourceStorage, "--database-dump="+m.dump); err != nil {
		return nil, nil, err
	}
	return m, func() {
		m.source.stop()
		os.RemoveAll(work)
	}, nil
}

// say prints the progress of a case.
func (b *bench) say(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "  "+format+"\n", args...)
}

// addItems adds items without nars to the source's index, like an import.
func (m *mirroring) addItems(count int, first time.Time, apart time.Duration) error {
	x, err := index.Open(m.b.ctx, m.sourceDatabase, index.Options{WriterCache: 128 << 20, Bulk: true})
	if err != nil {
		return err
	}
	for done := 0; done < count && err == nil; {
		err = x.Update(m.b.ctx, func(tx *index.Tx) error {
			for end := min(done+1000, count); done < end; done++ {
				made := m.made.next(-1)
				n, err := narinfo.Parse(made.text)
				if err != nil {
					return err
				}
				entry := x.Prepare(n)
				entry.AddedAt = first.Add(time.Duration(done) * apart)
				if err := tx.Put(entry, nil); err != nil {
					return err
				}
				m.last = made.hash
			}
			return nil
		})
	}
	if closeErr := x.Close(); err == nil {
		err = closeErr
	}
	return err
}

// makeDump runs nar-herder dump at the source.
func (m *mirroring) makeDump() error {
	b := m.b
	ctx, cancel := context.WithTimeout(b.ctx, mirrorWait)
	defer cancel()
	command := exec.CommandContext(ctx, b.binary, "dump", "--database="+m.sourceDatabase, "--database-dump="+m.dump)
	begun := time.Now()
	if out, err := command.CombinedOutput(); err != nil {
		return fmt.Errorf("nar-herder dump: %w\n%s", err, out)
	}
	took := time.Since(begun)
	b.say("made the dump in %.1f s", took.Seconds())
	b.addFigure(fmt.Sprintf("dump of %d items", b.items), "s", took.Seconds(), 0, true)
	for _, file := range []struct{ name, suffix string }{
		{"dump: the original's database", ""}, {"dump: the same with zstd", ".zst"}, {"dump: the index, for mirrors of ours", ".index"},
	} {
		info, err := os.Stat(m.dump + file.suffix)
		if err != nil {
			return err
		}
		b.addFigure(file.name, "MB", float64(info.Size())/1e6, 0, true)
	}
	return nil
}

// startMirror starts a mirror of the source, without a storage if the name is empty.
func (m *mirroring) startMirror(storage string, options ...string) (*server, error) {
	return m.b.narHerder(m.mirrorDatabase, storage, append([]string{"--mirror=http://" + m.source.address}, options...)...)
}

// fromNothing measures the start of a mirror without a database, against curl.
func (m *mirroring) fromNothing() error {
	b := m.b
	var ours, theirs, peaks []float64
	for round := range b.rounds + 1 {
		curl, err := m.curlDump()
		if err != nil {
			return err
		}
		// The next parts use the mirror of the last round.
		directory := filepath.Dir(m.mirrorDatabase)
		if err := os.RemoveAll(directory); err != nil {
			return err
		}
		if err := os.Mkdir(directory, 0o755); err != nil {
			return err
		}
		syscall.Sync()
		took, peak, err := m.synced()
		if err != nil {
			return err
		}
		what := fmt.Sprintf("round %d", round)
		if round == 0 {
			what = "to warm up"
		}
		b.say("%s: curl of the dump %.2f s, a mirror from nothing %.2f s, ratio %.3g, resident %.0f MB", what, curl, took, took/curl, peak)
		if round > 0 {
			ours, theirs, peaks = append(ours, took), append(theirs, curl), append(peaks, peak)
		}
	}
	b.add(fmt.Sprintf("a mirror of %d items, from nothing, against curl of the dump", b.items), "s ", ours, theirs, 1, true)
	b.addFigure("mirror from nothing: resident memory, at most", "MB", slices.Max(peaks), mirrorMemory, true)
	return nil
}

// curlDump downloads the dump to a temporary file, and returns the seconds that it took.
func (m *mirroring) curlDump() (float64, error) {
	name := filepath.Join(m.work, "curl.db")
	defer os.Remove(name)
	syscall.Sync() // avoid write-back during the measurement
	begun := time.Now()
	out, err := exec.CommandContext(m.b.ctx, "curl", "-sSf", "--max-time", fmt.Sprint(int(mirrorWait.Seconds())), "--noproxy", "*",
		"-o", name, "http://"+m.source.address+"/latest-database-dump").CombinedOutput()
	took := time.Since(begun).Seconds()
	if err != nil {
		return 0, fmt.Errorf("curl of the dump: %w\n%s", err, out)
	}
	made, err := os.Stat(m.dump)
	if err != nil {
		return 0, err
	}
	got, err := os.Stat(name)
	if err != nil {
		return 0, err
	}
	if got.Size() != made.Size() {
		return 0, fmt.Errorf("curl of the dump: got %d bytes of %d", got.Size(), made.Size())
	}
	return took, nil
}

// synced starts the mirror and stops it when it has everything from the source. It returns the
// seconds between, and the peak memory in MB.
func (m *mirroring) synced(options ...string) (seconds, peak float64, err error) {
	sourceBefore, err := m.source.cpu()
	if err != nil {
		return 0, 0, err
	}
	begun := time.Now()
	s, err := m.startMirror("", options...)
	if err != nil {
		return 0, 0, err
	}
	defer s.stop()
	if err := m.untilFollowing(s); err != nil {
		return 0, 0, err
	}
	seconds = time.Since(begun).Seconds()
	// Processor times help to tell a slow mirror from a busy machine.
	cpu, err1 := s.cpu()
	sourceCPU, err2 := m.source.cpu()
	if err := errors.Join(err1, err2); err != nil {
		return 0, 0, err
	}
	m.b.say("up to date after %.2f s; processor time: the mirror %.2f s, the source %.2f s", seconds, cpu.Seconds(), (sourceCPU - sourceBefore).Seconds())
	bytes, err := s.memory("VmHWM")
	if err != nil {
		return 0, 0, err
	}
	want, err := m.source.metric("narherder_items")
	if err != nil {
		return 0, 0, err
	}
	got, err := s.metric("narherder_items")
	if err == nil && got != want {
		err = fmt.Errorf("the mirror reports being up to date with %.0f items, but the source has %.0f", got, want)
	}
	return seconds, float64(bytes) / 1e6, err
}

// untilFollowing waits until the mirror reports being up to date and serves the last narinfo of
// the source.
func (m *mirroring) untilFollowing(s *server) error {
	ctx, cancel := context.WithTimeout(m.b.ctx, mirrorWait)
	defer cancel()
	var state, answer string
	for {
		var err error
		if state, err = s.mirrorState(ctx); err == nil && state == health.Following {
			if answer, err = s.status(ctx, "/"+m.last+".narinfo"); err == nil && answer == "200 OK" {
				return nil
			}
		}
		if err != nil {
			answer = err.Error() // the server may still be starting
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the mirror is not up to date: %w: it is %s, and the last answer was %s", ctx.Err(), state, answer)
		case err := <-s.exited:
			s.exited <- err // for stop
			return fmt.Errorf("the mirror has ended: %w\n%s", err, s.log)
		case <-time.After(healthEvery):
		}
	}
}

// mirrorState returns the state of the mirror, with the number of outstanding changes.
func (s *server) mirrorState(ctx context.Context) (string, error) {
	response, err := s.ask(ctx, "/health")
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	var health struct {
		Mirror health.Status `json:"mirror"`
	}
	if err := json.NewDecoder(response.Body).Decode(&health); err != nil {
		return "", err
	}
	if health.Mirror.Backlog > 0 {
		return fmt.Sprintf("%s, %d changes behind", health.Mirror.State, health.Mirror.Backlog), nil
	}
	return health.Mirror.State, nil
}

// metric returns the value of a metric. The name includes labels as in the text format.
func (s *server) metric(name string) (float64, error) {
	text, err := s.get("/metrics")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(line, name+" "); ok {
			return strconv.ParseFloat(strings.TrimSpace(value), 64)
		}
	}
	return 0, fmt.Errorf("the server has no metric %s", name)
}

// ask sends a request. The caller closes the body of the response.
func (s *server) ask(ctx context.Context, path string) (*http.Response, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+s.address+path, nil)
	if err != nil {
		return nil, err
	}
	return http.DefaultClient.Do(request)
}

// catchUp measures a mirror that was down while items were added at the source.
func (m *mirroring) catchUp() error {
	b := m.b
	if err := m.addItems(b.changes, time.Now(), time.Millisecond); err != nil {
		return err
	}
	syscall.Sync()
	took, peak, err := m.synced()
	if err != nil {
		return err
	}
	b.say("caught up with %d changes in %.2f s, resident %.0f MB", b.changes, took, peak)
	b.addFigure(fmt.Sprintf("a mirror that was away for %d changes catches up", b.changes), "s", took, 15, true)
	b.addFigure("mirror that catches up: resident memory, at most", "MB", peak, mirrorMemory, true)
	return nil
}
