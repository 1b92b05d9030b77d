package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"time"

	"nar-herder/narinfo"
)

const (
	// slowNars is the number of nars of slowSize bytes, with the largest dictionary of
	// lzip's levels: together they need more memory than decoders may use.
	slowNars = 8
	slowSize = 48 << 20
	// slowReaders is the number of clients that read slowReadRate bytes per second each.
	slowReaders  = 200
	slowReadRate = 2000
)

// slow measures the cost of slow clients for which nars are decompressed.
func (b *bench) slow() error {
	work, err := os.MkdirTemp(b.work, "slow-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	storage, source := filepath.Join(work, "storage"), filepath.Join(work, "source")
	if err := errors.Join(os.Mkdir(storage, 0o755), os.MkdirAll(filepath.Join(source, "nar", "lzip"), 0o755)); err != nil {
		return err
	}
	var paths []string
	g := newGenerator(b.seed)
	for n := range slowNars {
		path, err := writePackedNar(source, g.next(slowSize).base, n)
		if err != nil {
			return err
		}
		paths = append(paths, path)
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

	ctx, cancel := context.WithCancel(b.ctx)
	defer cancel()
	var alone, beside []float64
	for range b.rounds + 1 {
		rate, err := ours.download(b.ctx, paths[0], slowSize)
		if err != nil {
			return err
		}
		alone = append(alone, rate)
	}
	var clients sync.WaitGroup
	defer clients.Wait()
	defer cancel()
	begun := make(chan error, slowReaders)
	for n := range slowReaders {
		clients.Go(func() { ours.drip(ctx, paths[n%len(paths)], begun) })
	}
	for range slowReaders {
		if err := <-begun; err != nil {
			return err
		}
	}
	cpu, err := ours.cpu()
	if err != nil {
		return err
	}
	select { // measure the slow clients alone
	case <-time.After(b.duration):
	case <-ctx.Done():
		return ctx.Err()
	}
	after, err := ours.cpu()
	if err != nil {
		return err
	}
	for range b.rounds + 1 {
		rate, err := ours.download(b.ctx, paths[0], slowSize)
		if err != nil {
			return fmt.Errorf("beside %d slow clients: %w", slowReaders, err)
		}
		beside = append(beside, rate)
	}
	resident, err := ours.memory("VmRSS")
	if err != nil {
		return err
	}
	peak, err := ours.memory("VmHWM")
	if err != nil {
		return err
	}
	metrics, err := ours.get("/metrics")
	if err != nil {
		return err
	}
	for line := range bytes.Lines(metrics) {
		if bytes.HasPrefix(line, []byte("narherder_decoder")) {
			b.say("%s", bytes.TrimSpace(line))
		}
	}
	title := fmt.Sprintf("a nar of %d MiB, decompressed beside %d clients that take %d bytes a second (second figure: without them)", slowSize>>20, slowReaders, slowReadRate)
	b.add(title, "MB/s ", beside[1:], alone[1:], 0.5, false) // the first one is a warm-up
	b.addFigure("the same: processor time of the slow clients", "of a core", (after-cpu).Seconds()/b.duration.Seconds(), 0, true)
	b.addFigure("the same: resident", "MB", float64(resident)/1e6, 0, true)
	b.addFigure("the same: resident at the most", "MB", float64(peak)/1e6, 0, true)
	return nil
}

// writePackedNar writes a narinfo and its nar, compressed with lzip, for the item base. It
// returns the URL path of the decompressed nar.
func writePackedNar(dir, base string, n int) (path string, err error) {
	// The server checks only the hash of a nar, not its structure.
	nar := make([]byte, slowSize)
	for i := 0; i < len(nar); i += 16 {
		copy(nar[i:], fmt.Sprintf("%d %d", n, i/4096))
	}
	name := filepath.Join("nar", "lzip", base)
	file, err := os.Create(filepath.Join(dir, name))
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	command := exec.Command("lzip", "-0", "-s", "32MiB", "-c")
	command.Stdin, command.Stdout = bytes.NewReader(nar), file
	if err := command.Run(); err != nil {
		return "", fmt.Errorf("lzip: %w", err)
	}
	info, err := file.Stat()
	if err != nil {
		return "", err
	}
	text := fmt.Sprintf("StorePath: /gnu/store/%s\nURL: nar/lzip/%s\nCompression: lzip\nFileSize: %d\nNarHash: %s\nNarSize: %d\nReferences: \n",
		base, base, info.Size(), narinfo.NarHash(sha256.Sum256(nar)), len(nar))
	return "/nar/" + base, os.WriteFile(filepath.Join(dir, base[:narinfo.PathHashLen]+".narinfo"), []byte(text), 0o644)
}

// download downloads size bytes, and returns the rate in MB/s.
func (s *server) download(ctx context.Context, path string, size int64) (float64, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	begun := time.Now()
	response, err := s.ask(ctx, path)
	if err != nil {
		return 0, err
	}
	defer response.Body.Close()
	n, err := io.Copy(io.Discard, response.Body)
	if err != nil || response.StatusCode != 200 || n != size {
		return 0, fmt.Errorf("GET %s from %s: %s, %d bytes of %d: %w", path, s.name, response.Status, n, size, err)
	}
	return float64(size) / 1e6 / time.Since(begun).Seconds(), nil
}

// drip reads slowReadRate bytes per second of a response until the context ends. It sends the
// error of the start of the response to begun.
func (s *server) drip(ctx context.Context, path string, begun chan<- error) {
	conn, err := net.DialTimeout("tcp", s.address, 10*time.Second)
	if err != nil {
		begun <- err
		return
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	_, err = io.WriteString(conn, "GET "+path+" HTTP/1.1\r\nHost: localhost\r\n\r\n")
	piece := make([]byte, slowReadRate)
	if err == nil {
		_, err = io.ReadFull(conn, piece)
	}
	if err == nil && !bytes.HasPrefix(piece, []byte("HTTP/1.1 200 ")) {
		err = fmt.Errorf("a slow client got %q", bytes.SplitN(piece, []byte("\r\n"), 2)[0])
	}
	begun <- err
	ticker := time.NewTicker(time.Second)
	defer ticker.Stop()
	for err == nil {
		select {
		case <-ticker.C:
			_, err = io.ReadFull(conn, piece)
		case <-ctx.Done():
			return
		}
	}
}
