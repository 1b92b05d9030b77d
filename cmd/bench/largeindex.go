package main

import (
	"bytes"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

// largeIndex measures an index that is larger than its cache in memory.
func (b *bench) largeIndex() error {
	work, err := os.MkdirTemp(b.work, "index-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	t, err := b.writeTree(b.index, true)
	if err != nil {
		return err
	}
	if err := ensureSpace(work, int64(b.index)*5<<10); err != nil {
		return err
	}
	database := filepath.Join(work, "nar_herder.db")
	took, err := b.importTree(database, "", t.dir)
	if err != nil {
		return err
	}
	title := fmt.Sprintf("%d narinfos", b.index)
	b.addFigure("import of "+title, "narinfos/s", float64(b.index)/took.Seconds(), 10_000, false)
	var size int64
	for _, suffix := range []string{"", "-wal"} {
		if info, err := os.Stat(database + suffix); err == nil {
			size += info.Size()
		}
	}
	b.addFigure("database ÷ texts", "×", float64(size)/float64(t.bytes), 1, true)
	b.addFigure("a text", "bytes", float64(t.bytes)/float64(b.index), 0, false)

	var starts []float64
	for range b.rounds {
		begun := time.Now()
		s, err := b.narHerder(database, work)
		if err != nil {
			return err
		}
		body, err := s.get("/" + t.hashes[0] + ".narinfo")
		starts = append(starts, float64(time.Since(begun).Microseconds())/1e3)
		s.stop()
		if err != nil {
			return err
		}
		if !bytes.HasPrefix(body, []byte("StorePath: ")) {
			return fmt.Errorf("the first answer is %q", body)
		}
	}
	b.addFigure("start to first answer", "ms", median(starts), 100, true)

	ours, err := b.narHerder(database, work, "--narinfo-cache-size=0")
	if err != nil {
		return err
	}
	defer ours.stop()
	small, err := b.writeTree(b.narinfos, false)
	if err != nil {
		return err
	}
	theirs, err := b.nginx(small.dir)
	if err != nil {
		return err
	}
	defer theirs.stop()
	ourLoad, err := b.newLoad(t.shuffledPaths(b.seed), 1)
	if err != nil {
		return err
	}
	theirLoad, err := b.newLoad(small.shuffledPaths(b.seed), 1)
	if err != nil {
		return err
	}
	sampled := sampleMemory(ours)
	p, err := b.inTurnOf(ours, ourLoad, theirs, theirLoad)
	residents := sampled()
	if err != nil {
		return err
	}
	b.add(title+" in random order, no answer kept, against nginx with "+fmt.Sprint(b.narinfos), "requests/s ", p.ourRate, p.theirRate, 0, false)
	peak, err := ours.memory("VmHWM")
	if err != nil {
		return err
	}
	b.addFigure("resident memory meanwhile, at most", "MB", float64(peak)/1e6, 150, true)
	if len(residents) > 0 {
		b.addFigure("resident memory meanwhile, median", "MB", median(residents), 0, true)
	}
	asMany, err := b.nginx(t.dir)
	if err != nil {
		return err
	}
	defer asMany.stop()
	asManyLoad, err := b.newLoad(t.filePaths(b.seed), 1)
	if err != nil {
		return err
	}
	if p, err = b.inTurnOf(ours, ourLoad, asMany, asManyLoad); err != nil {
		return err
	}
	b.add(title+" in random order, no answer kept, against nginx with as many", "requests/s ", p.ourRate, p.theirRate, 0.5, false)
	missing, err := http.Get("http://" + ours.address + "/" + strings.Repeat("0", 32) + ".narinfo")
	if err != nil {
		return err
	}
	missing.Body.Close()
	if missing.StatusCode != http.StatusNotFound {
		return fmt.Errorf("an unknown narinfo is answered with %s", missing.Status)
	}
	return nil
}

// sampleMemory samples the server's resident memory in MB until stop is called.
func sampleMemory(s *server) (stop func() []float64) {
	var samples []float64
	var sampling sync.WaitGroup
	done := make(chan struct{})
	sampling.Go(func() {
		for {
			select {
			case <-done:
				return
			case <-time.After(100 * time.Millisecond):
			}
			if now, err := s.memory("VmRSS"); err == nil {
				samples = append(samples, float64(now)/1e6)
			}
		}
	})
	return func() []float64 {
		close(done)
		sampling.Wait()
		return samples
	}
}
