package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	"nar-herder/internal/s3server"
	"nar-herder/storage/s3"
)

const (
	// bucketNars is the number of nars of each size in the bucket.
	bucketNars = 64
	// slowClients download a large nar at the same time, each at most slowRate bytes per
	// second, to measure the server's memory.
	slowClients = 100
	slowRate    = 4 << 20
)

// bucketSizes are the sizes of the nars in the bucket: dominated by requests, by parts of
// uploads, and by neither.
var bucketSizes = []int64{200 << 10, 2 << 20, 16 << 20}

// frontEnd measures nars of a bucket through a front end against the same objects
// from the S3 server itself.
func (b *bench) frontEnd() (err error) {
	work, err := os.MkdirTemp(b.work, "bucket-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	var total int64
	for _, size := range bucketSizes {
		total += size * bucketNars
	}
	// Space for the nars, the objects, their parts, and a copy in the cache.
	if err := ensureSpace(work, 4*total); err != nil {
		return err
	}
	buckets, err := s3server.Start(work)
	if errors.Is(err, exec.ErrNotFound) {
		return err
	} else if err != nil {
		return fmt.Errorf("start the S3 server: %w", err)
	}
	defer buckets.Stop()
	storage := buckets.URL("nars/farm")
	direct := &server{name: "the S3 server", address: buckets.Address, command: buckets.Command()}

	database, frontDatabase := filepath.Join(work, "primary.db"), filepath.Join(work, "front.db")
	source := filepath.Join(work, "source")
	names, err := b.makeNars(source)
	if err != nil {
		return err
	}
	if _, err := b.importTree(frontDatabase, "", source); err != nil { // keeps the nars
		return err
	}
	took, err := b.importTree(database, storage, source)
	if err != nil {
		return err
	}
	b.say("imported %d nars, %d MB, into the bucket in %.3g s", len(bucketSizes)*bucketNars, total/1e6, took.Seconds())
	primary, err := b.narHerder(database, storage)
	if err != nil {
		return err
	}
	defer primary.stop()
	front, err := b.narHerder(frontDatabase, storage, "--storage-read-only", "--mirror=http://"+primary.address)
	if err != nil {
		return err
	}
	defer front.stop()

	cacheDatabase := filepath.Join(work, "cache.db")
	if _, err := b.importTree(cacheDatabase, "", source); err != nil {
		return err
	}
	cached, err := b.narHerder(cacheDatabase, storage, "--storage-read-only", "--mirror=http://"+primary.address,
		"--storage-cache="+filepath.Join(work, "cache"), fmt.Sprintf("--storage-cache-size=%dB", 5*total))
	if err != nil {
		return err
	}
	defer cached.stop()

	// Fill the cache, and avoid write-back during the measurement.
	for _, name := range slices.Concat(names...) {
		if status, err := cached.status(b.ctx, "/"+name); err != nil {
			return err
		} else if status != "200 OK" {
			return fmt.Errorf("GET /%s from %s: %s", name, cached.name, status)
		}
	}
	syscall.Sync()

	signed, err := presigned(b.ctx, storage, names)
	if err != nil {
		return err
	}
	for i, size := range bucketSizes {
		ours, err := b.newLoad(absolute(names[i]), 1)
		if err != nil {
			return err
		}
		theirs, err := b.newLoadFor(buckets.Address, signed[i], 1)
		if err != nil {
			return err
		}
		p, err := b.inTurnOf(front, ours, direct, theirs)
		if err != nil {
			return err
		}
		mb := float64(size) / 1e6
		scale(p.ourRate, mb)
		scale(p.theirRate, mb)
		title := fmt.Sprintf("nars of %d KB in a bucket, through a front end, against the S3 server itself", size>>10)
		b.add(title, "MB/s ", p.ourRate, p.theirRate, 0.8, false)
		scale(p.ourCPU, 1/mb)
		scale(p.theirCPU, 1/mb)
		b.add("the same: processor time of each server", "µs/MB ", p.ourCPU, p.theirCPU, 0, true)
		if p, err = b.inTurnOf(cached, ours, direct, theirs); err != nil {
			return err
		}
		scale(p.ourRate, mb)
		scale(p.theirRate, mb)
		b.add("the same with --storage-cache, which has them", "MB/s ", p.ourRate, p.theirRate, 0.8, false)
	}
	return b.slowDownloads(front, "/"+names[len(names)-1][0])
}

func scale(figures []float64, by float64) {
	for i := range figures {
		figures[i] *= by
	}
}

func absolute(names []string) (paths []string) {
	for _, name := range names {
		paths = append(paths, "/"+name)
	}
	return paths
}

// makeNars writes narinfos and their nars, and returns the names of the nars for each size.
func (b *bench) makeNars(source string) (names [][]string, err error) {
	if err := os.MkdirAll(filepath.Join(source, "nar", "lzip"), 0o755); err != nil {
		return nil, err
	}
	g := newGenerator(b.seed)
	names = make([][]string, len(bucketSizes))
	for i, size := range bucketSizes {
		for range bucketNars {
			n := g.next(size)
			name := "nar/lzip/" + n.base
			file, err := os.Create(filepath.Join(source, name))
			if err != nil {
				return nil, err
			}
			// Servers don't look at the content.
			_, err = io.CopyN(file, rand.NewChaCha8([32]byte{byte(len(names[i]))}), size)
			err = errors.Join(err, file.Close(), os.WriteFile(filepath.Join(source, n.hash+".narinfo"), n.text, 0o644))
			if err != nil {
				return nil, err
			}
			names[i] = append(names[i], name)
		}
	}
	return names, nil
}

// presigned returns presigned paths of the objects at the S3 server.
func presigned(ctx context.Context, storage string, names [][]string) (paths [][]string, err error) {
	bucket, err := s3.Open(ctx, storage, s3.Options{})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, bucket.Close()) }()
	paths = make([][]string, len(names))
	for i := range names {
		for _, name := range names[i] {
			text, err := bucket.Presign(ctx, name, 24*time.Hour)
			if err != nil {
				return nil, err
			}
			u, err := url.Parse(text)
			if err != nil {
				return nil, err
			}
			paths[i] = append(paths[i], u.RequestURI())
		}
	}
	return paths, nil
}

// slowDownloads measures the memory while many slow clients download a nar at the same time.
func (b *bench) slowDownloads(s *server, path string) error {
	size := bucketSizes[len(bucketSizes)-1]
	ctx, cancel := context.WithTimeout(b.ctx, 2*time.Minute)
	defer cancel()
	begun := time.Now()
	failures := make([]error, slowClients)
	var clients sync.WaitGroup
	for i := range slowClients {
		clients.Go(func() { failures[i] = s.slowly(ctx, path, size) })
	}
	clients.Wait()
	if err := errors.Join(failures...); err != nil {
		return err
	}
	peak, err := s.memory("VmHWM")
	if err != nil {
		return err
	}
	title := fmt.Sprintf("%d clients at a time, each %d MiB out of a bucket", slowClients, size>>20)
	b.say("%s: %.3g s", title, time.Since(begun).Seconds())
	b.addFigure(title+": resident at the most, all loads before included", "MB", float64(peak)/1e6, 150, true)
	return nil
}

// slowly downloads at slowRate, and checks the length.
func (s *server) slowly(ctx context.Context, path string, size int64) error {
	response, err := s.ask(ctx, path)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK || response.ContentLength != size {
		return fmt.Errorf("GET %s from %s: %s, %d bytes", path, s.name, response.Status, response.ContentLength)
	}
	begun := time.Now()
	for got := int64(0); ; {
		n, err := io.CopyN(io.Discard, response.Body, slowRate/10)
		got += n
		if err == io.EOF && got == size {
			return nil
		}
		if err != nil {
			return fmt.Errorf("GET %s from %s: %d bytes of %d: %w", path, s.name, got, size, err)
		}
		ahead := time.Duration(float64(got)/slowRate*float64(time.Second)) - time.Since(begun)
		select {
		case <-time.After(ahead):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
