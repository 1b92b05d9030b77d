package main

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"time"
)

// nar measures large and medium nars.
func (b *bench) nar() error { return b.nars("", false, 1.5, 1) }

// nars is nar with the end of the rows' names, with TLS if they should be secure, and with bars for
// the speed of the large nar and the rate of the others.
func (b *bench) nars(over string, secure bool, largeBar, mediumBar float64) error {
	const large, medium, count = 1 << 30, 200 << 10, 200
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
	if err := ensureSpace(work, large+medium*count); err != nil {
		return err
	}
	g := newGenerator(b.seed)
	var paths []string
	for i := range count + 1 {
		size := int64(medium)
		if i == 0 {
			size = large
		}
		n := g.next(size)
		file, err := os.Create(filepath.Join(nars, n.base))
		if err != nil {
			return err
		}
		// Servers don't look at the content.
		_, err = io.CopyN(file, rand.NewChaCha8([32]byte{byte(i)}), size)
		if err == nil {
			err = file.Sync() // avoid write-back during the measurement
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
	ours, theirs, err := b.both(database, storage, storage, secure)
	if err != nil {
		return err
	}
	defer ours.stop()
	defer theirs.stop()

	var ourSpeed, theirSpeed []float64
	for round := range b.rounds + 1 {
		for _, s := range []*server{ours, theirs} {
			begun := time.Now()
			out, err := exec.CommandContext(b.ctx, "curl", "-sS", "--insecure", "--max-time", "120", "--noproxy", "*", "-o", "/dev/null", "-w", "%{http_code} %{size_download} %{time_total}",
				s.url(paths[0])).Output()
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
	b.add("a nar of 1 GiB"+over, "MB/s ", ourSpeed, theirSpeed, largeBar, false)
	l, err := b.newLoad(paths[1:], 1)
	if err != nil {
		return err
	}
	p, err := b.inTurn(l, ours, theirs)
	if err != nil {
		return err
	}
	b.add("nars of 200 KB"+over, "requests/s ", p.ourRate, p.theirRate, mediumBar, false)
	b.add("nars of 200 KB"+over+", processor time", "µs/request ", p.ourCPU, p.theirCPU, 0, true)
	return nil
}
