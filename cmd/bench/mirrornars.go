package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"nar-herder/narinfo"
)

// importEach measures how soon a mirror serves items that are imported at the source one at a
// time, with their nars.
func (m *mirroring) importEach() error {
	b := m.b
	s, err := m.startMirror("")
	if err != nil {
		return err
	}
	defer s.stop()
	if err := m.untilFollowing(s); err != nil {
		return err
	}
	select {
	case <-time.After(settleFor):
	case <-b.ctx.Done():
		return b.ctx.Err()
	}
	nar := make([]byte, liveNar)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(nar) // never fails
	var lags, imports []float64
	for range b.imports {
		made := m.made.next(liveNar)
		directory := filepath.Join(m.work, "one")
		err := errors.Join(
			os.MkdirAll(filepath.Join(directory, "nar", "lzip"), 0o755),
			os.WriteFile(filepath.Join(directory, made.hash+".narinfo"), made.text, 0o644),
			os.WriteFile(filepath.Join(directory, "nar", "lzip", made.base), nar, 0o644))
		if err != nil {
			return err
		}
		took, err := b.importTree(m.sourceDatabase, m.sourceStorage, directory)
		if err != nil {
			return err
		}
		lag, err := s.untilServed(b.ctx, "/"+made.hash+".narinfo")
		if err != nil {
			return err
		}
		m.last = made.hash
		lags, imports = append(lags, lag.Seconds()*1e3), append(imports, took.Seconds()*1e3)
		if err := os.RemoveAll(directory); err != nil {
			return err
		}
	}
	b.say("%d imports, median %.3g ms each; served by the mirror after %.3g ms, p99 %.3g ms, at most %.3g ms", len(lags),
		median(imports), median(lags), percentile(lags, 99), slices.Max(lags))
	b.addFigure("an import of one item at the source, median", "ms", median(imports), 0, true)
	b.addFigure("from its end to served by the mirror: median", "ms", median(lags), 0, true)
	b.addFigure(fmt.Sprintf("the same, p99 of %d", len(lags)), "ms", percentile(lags, 99), 1000, true)
	b.addFigure("the same, at most", "ms", slices.Max(lags), 0, true)
	return nil
}

// percentile returns a percentile of the figures.
func percentile(figures []float64, of int) float64 {
	sorted := slices.Sorted(slices.Values(figures))
	return sorted[(len(sorted)*of+99)/100-1]
}

// untilServed waits until the server serves the path, and returns how long that took.
func (s *server) untilServed(ctx context.Context, path string) (time.Duration, error) {
	const most = time.Minute
	ctx, cancel := context.WithTimeout(ctx, most)
	defer cancel()
	begun := time.Now()
	for {
		status, err := s.status(ctx, path)
		took := time.Since(begun)
		switch {
		case err != nil:
			return 0, err
		case status == "200 OK":
			return took, nil
		case status != "404 Not Found":
			return 0, fmt.Errorf("GET %s from %s: %s", path, s.name, status)
		}
		select {
		case <-ctx.Done():
			return 0, fmt.Errorf("GET %s from %s: %s after %v: %w", path, s.name, status, took, ctx.Err())
		case <-time.After(probeEvery):
		}
	}
}

// status sends a request, and returns the status of the response.
func (s *server) status(ctx context.Context, path string) (string, error) {
	response, err := s.ask(ctx, path)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	_, err = io.Copy(io.Discard, response.Body) // reuse the connection
	return response.Status, err
}

// coldClients is the number of clients that request the same nar at the same time.
const coldClients = 100

// coldPage is the size of a page of the large nar. All pages are equal except for the number at
// their start.
const coldPage = 1 << 20

// coldNar is a large nar that clients can compare byte by byte, without a copy in memory or a
// digest.
type coldNar struct {
	page []byte
	size int64
}

func newColdNar(size int64) *coldNar {
	c := &coldNar{page: make([]byte, coldPage), size: size / coldPage * coldPage}
	_, _ = rand.NewChaCha8([32]byte{2}).Read(c.page) // never fails
	return c
}

func pageMark(n int64) []byte { return fmt.Appendf(nil, "page %011d", n) }

// write writes the nar.
func (c *coldNar) write(to io.Writer) error {
	for n := range c.size / coldPage {
		mark := pageMark(n)
		if _, err := to.Write(mark); err != nil {
			return err
		}
		if _, err := to.Write(c.page[len(mark):]); err != nil {
			return err
		}
	}
	return nil
}

// compare checks that the reader returns exactly the nar.
func (c *coldNar) compare(from io.Reader) error {
	got := make([]byte, coldPage)
	for n := range c.size / coldPage {
		if _, err := io.ReadFull(from, got); err != nil {
			return fmt.Errorf("page %d: %w", n, err)
		}
		mark := pageMark(n)
		if !bytes.HasPrefix(got, mark) || !bytes.Equal(got[len(mark):], c.page[len(mark):]) {
			return fmt.Errorf("page %d is wrong", n)
		}
	}
	n, err := io.Copy(io.Discard, from)
	if err == nil && n > 0 {
		err = fmt.Errorf("%d bytes too many", n)
	}
	return err
}

// importCold imports the nar at the source, and returns its URL path.
func (m *mirroring) importCold(c *coldNar) (path string, err error) {
	directory := filepath.Join(m.work, "cold")
	if err := os.MkdirAll(filepath.Join(directory, "nar"), 0o755); err != nil {
		return "", err
	}
	base := m.made.next(0).base
	file, err := os.Create(filepath.Join(directory, "nar", base))
	if err != nil {
		return "", err
	}
	digest := sha256.New()
	err = c.write(io.MultiWriter(file, digest))
	if err == nil {
		err = file.Sync()
	}
	if err = errors.Join(err, file.Close()); err != nil {
		return "", err
	}
	hash := base[:narinfo.PathHashLen]
	text := fmt.Sprintf("StorePath: %s/%s\nURL: nar/%s\nCompression: none\nFileSize: %d\nNarHash: %s\nNarSize: %d\nReferences: \n",
		narinfo.StoreDir, base, base, c.size, narinfo.NarHash(digest.Sum(nil)), c.size)
	if err := os.WriteFile(filepath.Join(directory, hash+".narinfo"), []byte(text), 0o644); err != nil {
		return "", err
	}
	if _, err := m.b.importTree(m.sourceDatabase, m.sourceStorage, directory); err != nil {
		return "", err
	}
	m.last = hash
	return "/nar/" + base, os.RemoveAll(directory)
}

// askForCold measures many clients that request a nar at the same time, which the mirror lacks.
func (m *mirroring) askForCold() error {
	b := m.b
	storage := filepath.Join(filepath.Dir(m.mirrorDatabase), "storage")
	if err := os.Mkdir(storage, 0o755); err != nil {
		return err
	}
	c := newColdNar(b.coldNar)
	path, err := m.importCold(c)
	if err != nil {
		return err
	}
	s, err := m.startMirror(storage, "--mirror-nars=on-demand")
	if err != nil {
		return err
	}
	defer s.stop()
	if err := m.untilFollowing(s); err != nil {
		return err
	}
	before, err := m.source.narsSent()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(b.ctx, mirrorWait)
	defer cancel()
	var asking sync.WaitGroup
	failures := make([]error, coldClients)
	begun := time.Now()
	for i := range coldClients {
		asking.Go(func() { failures[i] = c.ask(ctx, s, path) })
	}
	asking.Wait()
	took := time.Since(begun).Seconds()
	peak, err := s.memory("VmHWM")
	if err != nil {
		return err
	}
	after, err := m.source.narsSent()
	if err != nil {
		return err
	}
	right := 0
	for i, err := range failures {
		if err == nil {
			right++
		} else {
			b.say("client %d: %v", i, err)
		}
	}
	title := fmt.Sprintf("%d clients, the same nar of %d MiB, cold", coldClients, c.size>>20)
	b.say("%s: %d got it, %.0f fetches, %.1f s, %.0f MB/s, resident %.0f MB", title, right, after-before, took,
		coldClients*float64(c.size)/1e6/took, float64(peak)/1e6)
	b.addFigure(title+": clients that got every byte right", "clients", float64(right), coldClients, false)
	b.addFigure("the same: fetches from the source", "", after-before, 1, true)
	b.addFigure("the same: until all have it", "s", took, 0, true)
	b.addFigure("the same: resident memory of the mirror, at most", "MB", float64(peak)/1e6, mirrorMemory, true)
	return nil
}

// ask downloads and compares the nar.
func (c *coldNar) ask(ctx context.Context, s *server, path string) error {
	response, err := s.ask(ctx, path)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK || response.ContentLength != c.size {
		return fmt.Errorf("GET %s from %s: %s, %d bytes", path, s.name, response.Status, response.ContentLength)
	}
	return c.compare(response.Body)
}

// narsSent returns the number of requests that the server answered with a nar or a part of one.
func (s *server) narsSent() (sum float64, err error) {
	for _, status := range []string{"200", "206"} {
		n, err := s.metric(`narherder_http_requests_total{method="GET",route="/nar/",status="` + status + `"}`)
		if err != nil {
			return 0, err
		}
		sum += n
	}
	return sum, nil
}
