package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"nar-herder/narinfo"
	"nar-herder/storage/index"
)

// shuffledPaths are the narinfos' paths in random order, as an index is asked for
// them.
func (t *tree) shuffledPaths(seed uint64) []string {
	return shuffled(t.hashes, seed, func(hash string) string { return "/" + hash + ".narinfo" })
}

// filePaths are those of the files below the tree, in the same order.
func (t *tree) filePaths(seed uint64) []string {
	return shuffled(t.hashes, seed, func(hash string) string { return "/" + t.file(hash) })
}

func shuffled(hashes []string, seed uint64, path func(string) string) []string {
	paths := make([]string, len(hashes))
	for i, hash := range hashes {
		paths[i] = path(hash)
	}
	rand.New(rand.NewPCG(seed, 0)).Shuffle(len(paths), func(i, j int) { paths[i], paths[j] = paths[j], paths[i] })
	return paths
}

// narinfoServers starts both servers on the same narinfos.
func (b *bench) narinfoServers() (t *tree, ours, theirs *server, err error) {
	if t, err = b.writeTree(b.narinfos, false); err != nil {
		return nil, nil, nil, err
	}
	work, err := os.MkdirTemp(b.work, "server-")
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
	return b.compareNarinfos("narinfos", t, ours, theirs, 1.2, 0.75, 9)
}

// cached measures what cached compressions cost narinfos: two of our servers,
// one of which has a cached nar for each second item.
func (b *bench) cached() error {
	t, err := b.writeTree(b.narinfos, false)
	if err != nil {
		return err
	}
	work, err := os.MkdirTemp(b.work, "cached-")
	if err != nil {
		return err
	}
	storage, cache := filepath.Join(work, "storage"), filepath.Join(work, "zstd")
	for _, dir := range []string{storage, cache} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			return err
		}
	}
	with, without := filepath.Join(work, "with.db"), filepath.Join(work, "without.db")
	for _, database := range []string{with, without} {
		if _, err := b.importTree(database, "", t.dir); err != nil {
			return err
		}
	}
	if err := b.pretendCached(with, cache, t.hashes); err != nil {
		return err
	}
	for _, c := range []struct {
		name    string
		options []string
		bar     float64
	}{
		{"narinfos with cached nars, against without", nil, 0.95},
		{"the same, no answer kept", []string{"--narinfo-cache-size=0"}, 0},
	} {
		ours, err := b.narHerder(with, storage, append(c.options, "--enable-cached-compression=zstd", "--cached-compression-directory=zstd="+cache)...)
		if err != nil {
			return err
		}
		plain, err := b.narHerder(without, storage, c.options...)
		if err != nil {
			ours.stop()
			return err
		}
		text, err := ours.get("/" + t.hashes[0] + ".narinfo")
		switch {
		case err != nil:
		case !bytes.Contains(text, []byte("Compression: zstd\n")):
			err = fmt.Errorf("the narinfo does not name its cached nar: %s", text)
		default:
			err = b.compareNarinfos(c.name, t, ours, plain, c.bar, 0, c.bar)
		}
		ours.stop()
		plain.stop()
		if err != nil {
			return err
		}
	}
	return nil
}

// pretendCached records a cached file of one byte for each second item.
func (b *bench) pretendCached(database, dir string, hashes []string) error {
	x, err := index.Open(b.ctx, database, index.Options{})
	if err != nil {
		return err
	}
	err = x.Update(b.ctx, func(tx *index.Tx) error {
		for i := 0; i < len(hashes); i += 2 {
			hash, err := narinfo.ParsePathHash([]byte(hashes[i]))
			if err != nil {
				return err
			}
			row, err := tx.Item(hash)
			if err != nil {
				return err
			}
			n, err := narinfo.Parse(row.Text)
			if err != nil {
				return err
			}
			if err := os.WriteFile(filepath.Join(dir, n.StorePath.BaseName()), []byte{0}, 0o644); err != nil {
				return err
			}
			if err := tx.PutCached(index.CachedFile{Hash: hash, Type: "zstd", Size: 1, LastUsed: time.Now()}); err != nil {
				return err
			}
		}
		return nil
	})
	return errors.Join(err, x.Close())
}

// nar measures large and middling nars.
func (b *bench) nar() error {
	const large, middling, count = 1 << 30, 200 << 10, 200
	work, err := os.MkdirTemp(b.work, "nars-")
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
	if err := ensureSpace(work, large+middling*count); err != nil {
		return err
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
			err = file.Sync() // nothing is to be written back while it is measured
		}
		err = errors.Join(err, file.Close())
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
			out, err := exec.CommandContext(b.ctx, "curl", "-sS", "--max-time", "120", "--noproxy", "*", "-o", "/dev/null", "-w", "%{http_code} %{size_download} %{time_total}",
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
	b.add("a nar of 1 GiB", "MB/s ", ourSpeed, theirSpeed, 1.5, false)
	l, err := b.newLoad(paths[1:], 1)
	if err != nil {
		return err
	}
	p, err := b.inTurn(l, ours, theirs)
	if err != nil {
		return err
	}
	b.add("nars of 200 KB", "requests/s ", p.ourRate, p.theirRate, 1, false)
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
	var alone, beside, answered []float64
	for round := range b.rounds + 1 {
		m, err := l.run(b, ours, b.duration)
		if err != nil {
			return err
		}
		m2, served, err := b.besideIdle(l, ours, request, idle, slow)
		if err != nil {
			return err
		}
		if round > 0 { // the first is to warm up
			alone, beside, answered = append(alone, m.rate), append(beside, m2.rate), append(answered, float64(served))
		}
	}
	b.add("narinfos beside 2,000 idle and 50 slow connections (second figure: without them)", "requests/s ", beside, alone, 0.9, false)
	b.addFigure("idle connections that are answered afterwards, at least", "", slices.Min(answered), idle, false)
	return nil
}

// besideIdle runs the load beside idle and slow connections, and returns how many
// of the idle ones are served afterwards as well.
func (b *bench) besideIdle(l *load, s *server, request string, idle, slow int) (m measurement, served int, err error) {
	var kept []keptConnection
	defer func() {
		for _, c := range kept {
			c.Close()
		}
	}()
	for i := range idle + slow {
		conn, err := net.DialTimeout("tcp", s.address, 10*time.Second)
		if err != nil {
			return m, 0, err
		}
		kept = append(kept, keptConnection{conn, bufio.NewReaderSize(conn, 512)})
		if i < idle { // each waits after an answer, as those of clients do
			if err := kept[i].ask(request); err != nil {
				return m, 0, fmt.Errorf("connection %d: %w", i, err)
			}
		}
	}
	ctx, cancel := context.WithCancel(b.ctx)
	defer cancel()
	var clients sync.WaitGroup
	for _, c := range kept[idle:] {
		clients.Go(func() {
			for k := 0; ; k++ {
				if _, err := c.Write([]byte{request[k%len(request)]}); err != nil {
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
	m, err = l.run(b, s, b.duration)
	cancel()
	clients.Wait()
	for _, c := range kept[:idle] {
		if c.ask(request) == nil {
			served++
		}
	}
	return m, served, err
}

// keptConnection is a connection that is kept between requests.
type keptConnection struct {
	net.Conn
	answers *bufio.Reader
}

// ask sends the request and reads the answer.
func (c keptConnection) ask(request string) error {
	if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return err
	}
	if _, err := io.WriteString(c, request); err != nil {
		return err
	}
	response, err := http.ReadResponse(c.answers, nil)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if _, err := io.Copy(io.Discard, response.Body); err != nil {
		return err
	}
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("the answer is %s", response.Status)
	}
	return nil
}

// largeIndex measures an index that is far too large to be kept in memory.
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

// sampleMemory notes the server's resident memory in MB, until stop is called.
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
