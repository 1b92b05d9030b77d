package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

// shuffledPaths are the narinfos' paths in random order.
func (t *tree) shuffledPaths(seed uint64) []string {
	paths := make([]string, len(t.hashes))
	for i, hash := range t.hashes {
		paths[i] = "/" + hash + ".narinfo"
	}
	rand.New(rand.NewPCG(seed, 0)).Shuffle(len(paths), func(i, j int) { paths[i], paths[j] = paths[j], paths[i] })
	return paths
}

// narinfoServers starts both servers on the same narinfos.
func (b *bench) narinfoServers() (t *tree, ours, theirs *server, err error) {
	if t, err = b.writeTree(filepath.Join(b.dir, "narinfos"), b.narinfos, false); err != nil {
		return nil, nil, nil, err
	}
	work, err := os.MkdirTemp(b.dir, "server-")
	if err != nil {
		return nil, nil, nil, err
	}
	database := filepath.Join(work, "nar_herder.db")
	if _, err := b.importTree(database, "", t.dir); err != nil {
		return nil, nil, nil, err
	}
	if ours, err = b.narHerder(database, work); err != nil {
		return nil, nil, nil, err
	}
	if theirs, err = b.nginx(t.dir); err != nil {
		ours.stop()
		return nil, nil, nil, err
	}
	return t, ours, theirs, nil
}

func (b *bench) narinfo() error {
	t, ours, theirs, err := b.narinfoServers()
	if err != nil {
		return err
	}
	defer ours.stop()
	defer theirs.stop()
	return b.compareNarinfos("narinfos", t, ours, theirs, 1, 1, 5)
}

// nar measures large and middling nars.
func (b *bench) nar() error {
	const large, middling, count = 1 << 30, 200 << 10, 200
	work, err := os.MkdirTemp(b.dir, "nars-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	source, storage := filepath.Join(work, "source"), filepath.Join(work, "storage")
	nars := filepath.Join(storage, "nar", "lzip")
	for _, dir := range []string{source, nars} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	g := newGenerator(b.seed)
	var paths []string
	for i := range count + 1 {
		size := int64(middling)
		if i == 0 {
			size = large
		}
		n := g.next(size)
		file, err := os.Create(filepath.Join(nars, n.base))
		if err != nil {
			return err
		}
		// Any bytes do: they are sent as they lie.
		_, err = io.CopyN(file, rand.NewChaCha8([32]byte{byte(i)}), size)
		if err == nil {
			err = file.Close()
		}
		if err == nil {
			err = os.WriteFile(filepath.Join(source, n.hash+".narinfo"), n.text, 0o644)
		}
		if err != nil {
			return err
		}
		paths = append(paths, "/nar/lzip/"+n.base)
	}
	database := filepath.Join(work, "nar_herder.db")
	if _, err := b.importTree(database, storage, source); err != nil {
		return err
	}
	ours, err := b.narHerder(database, storage)
	if err != nil {
		return err
	}
	defer ours.stop()
	theirs, err := b.nginx(storage)
	if err != nil {
		return err
	}
	defer theirs.stop()

	var ourSpeed, theirSpeed []float64
	for round := range b.rounds + 1 {
		for _, s := range []*server{ours, theirs} {
			begun := time.Now()
			out, err := exec.CommandContext(b.ctx, "curl", "-sS", "-o", "/dev/null", "-w", "%{http_code} %{size_download} %{time_total}",
				"http://"+s.address+paths[0]).Output()
			took := time.Since(begun).Seconds()
			if err != nil {
				return fmt.Errorf("curl: %w", err)
			}
			var status, size int64
			if _, err := fmt.Sscanf(string(out), "%d %d %f", &status, &size, &took); err != nil || status != 200 || size != large {
				return fmt.Errorf("curl got %q from %s", out, s.name)
			}
			if round == 0 {
				continue // to warm up
			}
			if speed := large / took / 1e6; s == ours {
				ourSpeed = append(ourSpeed, speed)
			} else {
				theirSpeed = append(theirSpeed, speed)
			}
		}
	}
	b.add("a nar of 1 GiB", "MB/s ", ourSpeed, theirSpeed, 1, false)
	l, err := b.newLoad(paths[1:], 1)
	if err != nil {
		return err
	}
	p, err := b.inTurn(l, ours, theirs)
	if err != nil {
		return err
	}
	b.add("nars of 200 KB", "requests/s ", p.ourRate, p.theirRate, 0.9, false)
	return nil
}

// idle measures what connections that do nothing, or little, cost the others.
func (b *bench) idle() error {
	const idle, slow = 2000, 50
	t, ours, theirs, err := b.narinfoServers()
	if err != nil {
		return err
	}
	defer ours.stop()
	defer theirs.stop()
	l, err := b.newLoad(t.shuffledPaths(b.seed), 1)
	if err != nil {
		return err
	}
	request := fmt.Sprintf("GET /%s.narinfo HTTP/1.1\r\nHost: localhost\r\n\r\n", t.hashes[0])
	var alone, beside []float64
	for round := range b.rounds + 1 {
		m, err := l.run(b, ours, b.duration)
		if err != nil {
			return err
		}
		ctx, cancel := context.WithCancel(b.ctx)
		var clients sync.WaitGroup
		var conns []net.Conn
		for i := range idle + slow {
			conn, err := net.Dial("tcp", ours.address)
			if err != nil {
				cancel()
				return err
			}
			conns = append(conns, conn)
			if i < idle {
				// Each is kept after one answer, as a client's is.
				if _, err := io.WriteString(conn, request); err != nil {
					cancel()
					return err
				}
				continue
			}
			clients.Go(func() {
				for k := range request {
					if _, err := conn.Write([]byte{request[k]}); err != nil {
						return // cut for its slowness
					}
					select {
					case <-time.After(time.Second):
					case <-ctx.Done():
						return
					}
				}
			})
		}
		m2, err := l.run(b, ours, b.duration)
		cancel()
		clients.Wait()
		for _, conn := range conns {
			conn.Close()
		}
		if err != nil {
			return err
		}
		if round > 0 {
			alone, beside = append(alone, m.rate), append(beside, m2.rate)
		}
	}
	b.add("narinfos beside 2,000 idle and 50 slow connections (second figure: without them)", "requests/s ", beside, alone, 0.9, false)
	return nil
}

// largeIndex measures an index that is far too large to be kept in memory.
func (b *bench) largeIndex() error {
	work, err := os.MkdirTemp(b.dir, "index-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	t, err := b.writeTree(filepath.Join(b.dir, "index-narinfos"), b.index, true)
	if err != nil {
		return err
	}
	database := filepath.Join(work, "nar_herder.db")
	took, err := b.importTree(database, "", t.dir)
	if err != nil {
		return err
	}
	millions := fmt.Sprintf("%.1f million narinfos", float64(b.index)/1e6)
	b.addFigure("import of "+millions, "narinfos/s", float64(b.index)/took.Seconds(), 10_000, false)
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
	small, err := b.writeTree(filepath.Join(b.dir, "narinfos"), b.narinfos, false)
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
	var ourRates, theirRates []float64
	for round := range b.rounds + 1 {
		our, err := ourLoad.run(b, ours, b.duration)
		if err != nil {
			return err
		}
		their, err := theirLoad.run(b, theirs, b.duration)
		if err != nil {
			return err
		}
		if round > 0 { // the first is to warm up
			ourRates, theirRates = append(ourRates, our.rate), append(theirRates, their.rate)
		}
	}
	b.add(millions+" in random order, no answer kept, against nginx with "+fmt.Sprint(b.narinfos), "requests/s ", ourRates, theirRates, 0.5, false)
	memory, err := ours.peakMemory()
	if err != nil {
		return err
	}
	b.addFigure("resident memory meanwhile, at most", "MB", float64(memory)/1e6, 150, true)
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
