package main

import (
	"bufio"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"nar-herder/compression"
	"nar-herder/narinfo"
)

const (
	// cacheNar is the size of the nars in the case cache.
	cacheNar = 100_000_000
	// linkRate is the rate of the upstream that is as fast as a network of 1 Gbit/s, in bytes
	// per second.
	linkRate = 125_000_000
	// hotDownloads is how often a hot nar is downloaded in each round, as that takes little
	// time.
	hotDownloads = 10
)

// cacheKinds are the compressions of these nars. Those in none and zstd are random, so that
// decompressing them takes no time; those in lzip are text.
var cacheKinds = []string{"none", "zstd", "lzip"}

// cachedNar is a nar of the case cache.
type cachedNar struct {
	hash, path string
	size       int64 // of the file
}

// cache measures nars through a cache, against those from the upstream itself and against
// stored ones.
func (b *bench) cache() error {
	work, err := os.MkdirTemp(b.work, "cache-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	if err := ensureSpace(work, int64(3*len(cacheKinds))*cacheNar); err != nil {
		return err
	}
	published := filepath.Join(work, "published")
	nars := make(map[string]cachedNar)
	made := newGenerator(b.seed)
	for _, kind := range cacheKinds {
		if nars[kind], err = made.publish(published, kind); err != nil {
			return err
		}
	}
	storage := filepath.Join(work, "storage")
	if err := os.Mkdir(storage, 0o755); err != nil {
		return err
	}
	if _, err := b.importWith(filepath.Join(work, "stored.db"), published, "--storage="+storage, "--keep"); err != nil {
		return err
	}
	stored, err := b.narHerder(filepath.Join(work, "stored.db"), storage)
	if err != nil {
		return err
	}
	defer stored.stop()
	log := filepath.Join(work, "requests")
	for _, link := range []struct {
		name string
		rate int
		bar  float64
	}{
		{"an upstream at 1 Gbit/s", linkRate, 0.9},
		{"an upstream on this machine", 0, 0},
	} {
		upstream, err := b.nginxWith(published, fmt.Sprintf("limit_rate %d; access_log %s;", link.rate, log))
		if err != nil {
			return err
		}
		err = b.cacheOf(upstream, stored, link.name, link.bar, nars)
		if err == nil && link.rate > 0 {
			err = b.cacheTwice(upstream, nars["none"], log)
		}
		upstream.stop()
		if err != nil {
			return err
		}
	}
	return nil
}

// publish makes an item with a nar in a compression, as guix publish does.
func (g *generator) publish(directory, kind string) (made cachedNar, err error) {
	base := g.next(0).base
	made.hash, made.path = base[:narinfo.PathHashLen], "nar/"+kind+"/"+base
	if kind == "none" {
		made.path = "nar/" + base
	}
	name := filepath.Join(directory, made.path)
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return made, err
	}
	file, err := os.Create(name)
	if err != nil {
		return made, err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	var to io.WriteCloser = file
	if kind != "none" {
		if to, err = compression.NewWriter(kind, 1, file); err != nil {
			return made, err
		}
	}
	digest := sha256.New()
	content := bufio.NewWriterSize(io.MultiWriter(to, digest), 1<<20)
	if kind == "lzip" {
		for written := 0; written < cacheNar && err == nil; written += 40 {
			_, err = content.Write(append(g.draw(make([]byte, 0, 40), narinfoAlphabet, 20), "a line of this text\n"...))
		}
	} else {
		_, err = io.CopyN(content, rand.NewChaCha8([32]byte{byte(len(kind))}), cacheNar)
	}
	err = errors.Join(err, content.Flush())
	if kind != "none" {
		err = errors.Join(err, to.Close())
	}
	if err = errors.Join(err, file.Sync()); err != nil {
		return made, err
	}
	info, err := file.Stat()
	if err != nil {
		return made, err
	}
	made.size = info.Size()
	text := fmt.Sprintf("StorePath: %s/%s\nNarHash: %s\nNarSize: %d\nReferences: \n", narinfo.StoreDir, base, narinfo.NarHash(digest.Sum(nil)), cacheNar)
	text += fmt.Sprintf("Signature: 1;farm.example.org;%s\nURL: %s\nCompression: %s\nFileSize: %d\n",
		base64.StdEncoding.EncodeToString(g.signer.sign([]byte(text))), made.path, kind, made.size)
	return made, os.WriteFile(filepath.Join(directory, made.hash+".narinfo"), []byte(text), 0o644)
}

// emptyCache starts a cache of an upstream that has the narinfos of nars.
func (b *bench) emptyCache(upstream *server, nars ...cachedNar) (s *server, remove func() error, err error) {
	work, err := os.MkdirTemp(b.work, "cache-")
	if err != nil {
		return nil, nil, err
	}
	if s, err = b.narHerder(filepath.Join(work, "cache.db"), work, "--upstream=http://"+upstream.address); err != nil {
		return nil, nil, errors.Join(err, os.RemoveAll(work))
	}
	remove = func() error {
		s.stop()
		return os.RemoveAll(work)
	}
	for _, nar := range nars {
		if _, err := s.get("/" + nar.hash + ".narinfo"); err != nil {
			return nil, nil, errors.Join(err, remove())
		}
	}
	return s, remove, nil
}

// cacheOf compares a cache with its upstream, and with a server that has the nars stored.
func (b *bench) cacheOf(upstream, stored *server, link string, bar float64, nars map[string]cachedNar) error {
	cold, hot, direct, kept := make(map[string][]float64), make(map[string][]float64), make(map[string][]float64), make(map[string][]float64)
	var decompressed, decompressedDirect []float64
	for range b.rounds {
		took, err := b.decompressedDownload(upstream, nars["lzip"])
		if err != nil {
			return err
		}
		decompressedDirect = append(decompressedDirect, took)
		cache, remove, err := b.emptyCache(upstream, nars["lzip"])
		if err != nil {
			return err
		}
		took, err = b.decompressedDownload(cache, nars["lzip"])
		if err := errors.Join(err, remove()); err != nil {
			return err
		}
		decompressed = append(decompressed, took)
		for _, kind := range cacheKinds {
			nar := nars[kind]
			cache, remove, err := b.emptyCache(upstream, nar)
			if err != nil {
				return err
			}
			type load struct {
				from   *server
				speeds map[string][]float64
			}
			loads := []load{{upstream, nil}, {upstream, direct}, {cache, cold}, {cache, nil}, {stored, nil}}
			for range hotDownloads {
				loads = append(loads, load{cache, hot}, load{stored, kept})
			}
			for _, load := range loads {
				speed, err := b.download(load.from, nar)
				if err != nil {
					return errors.Join(err, remove())
				}
				if load.speeds != nil { // else to warm up
					load.speeds[kind] = append(load.speeds[kind], speed)
				}
			}
			if err := remove(); err != nil {
				return err
			}
		}
	}
	for _, kind := range cacheKinds {
		name := fmt.Sprintf("a nar of 100 MB in %s of %s", kind, link)
		if kind == "lzip" {
			b.add(name+", cold", "MB/s ", cold[kind], direct[kind], 0, false) // the decoder's speed
			b.add("the same, by a client that decompresses while it receives, as Guix does", "MB/s ", decompressed, decompressedDirect, 0.9, false)
		} else {
			b.add(name+", cold", "MB/s ", cold[kind], direct[kind], bar, false)
		}
		b.add("the same, hot, against a stored one", "MB/s ", hot[kind], kept[kind], 0.9, false)
	}
	return nil
}

// download downloads a nar with curl, and returns the speed in MB/s.
func (b *bench) download(from *server, nar cachedNar) (float64, error) {
	out, err := exec.CommandContext(b.ctx, "curl", "-sS", "--max-time", "120", "--noproxy", "*", "-o", "/dev/null", "-w", "%{http_code} %{size_download} %{time_total}",
		"http://"+from.address+"/"+nar.path).Output()
	if err != nil {
		return 0, fmt.Errorf("curl %s from %s: %w\n%s", nar.path, from.name, err, from.log)
	}
	var status, size int64
	var took float64
	if _, err := fmt.Sscanf(string(out), "%d %d %f", &status, &size, &took); err != nil || status != 200 || size != nar.size {
		return 0, fmt.Errorf("curl got %q of %s from %s, want %d bytes", out, nar.path, from.name, nar.size)
	}
	return float64(size) / took / 1e6, nil
}

// decompressedDownload downloads a nar in lzip with curl, decompresses it with lzip, and
// returns the speed of the download in MB/s.
func (b *bench) decompressedDownload(from *server, nar cachedNar) (float64, error) {
	program, err := lookUpProgram(lzipPrograms)
	if err != nil {
		return 0, err
	}
	curl := exec.CommandContext(b.ctx, "curl", "-sSf", "--max-time", "120", "--noproxy", "*", "http://"+from.address+"/"+nar.path)
	lzip := exec.CommandContext(b.ctx, program, "-dc")
	var size byteCounter
	lzip.Stdout = &size
	if lzip.Stdin, err = curl.StdoutPipe(); err != nil {
		return 0, err
	}
	begun := time.Now()
	if err := curl.Start(); err != nil {
		return 0, err
	}
	err = lzip.Run()
	if err := errors.Join(err, curl.Wait()); err != nil {
		return 0, fmt.Errorf("download %s from %s through lzip: %w\n%s", nar.path, from.name, err, from.log)
	}
	took := time.Since(begun).Seconds()
	if size != cacheNar {
		return 0, fmt.Errorf("%s from %s has %d bytes decompressed, want %d", nar.path, from.name, size, cacheNar)
	}
	return float64(nar.size) / took / 1e6, nil
}

// byteCounter counts what is written to it.
type byteCounter int64

func (c *byteCounter) Write(p []byte) (int, error) {
	*c += byteCounter(len(p))
	return len(p), nil
}

// cacheTwice lets two clients request a nar at the same time, and counts the requests at the
// upstream, of which log is the access log.
func (b *bench) cacheTwice(upstream *server, nar cachedNar, log string) error {
	cache, remove, err := b.emptyCache(upstream, nar)
	if err != nil {
		return err
	}
	defer func() { _ = remove() }()
	before, err := countRequests(log, nar.path)
	if err != nil {
		return err
	}
	var clients sync.WaitGroup
	failures := make([]error, 2)
	begun := time.Now()
	for i := range failures {
		clients.Go(func() { _, failures[i] = b.download(cache, nar) })
	}
	clients.Wait()
	took := time.Since(begun).Seconds()
	if err := errors.Join(failures...); err != nil {
		return err
	}
	after, err := countRequests(log, nar.path)
	if err != nil {
		return err
	}
	b.addFigure("two clients at once, cold, at 1 Gbit/s: requests to the upstream", "", float64(after-before), 1, true)
	b.addFigure("the same: until both have it", "s", took, 0, true)
	return nil
}

// countRequests counts the requests for a path in an access log.
func countRequests(log, path string) (int, error) {
	text, err := os.ReadFile(log)
	return strings.Count(string(text), "GET /"+path+" "), err
}
