package main

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"nar-herder/compression"
	"nar-herder/narinfo"
	"nar-herder/storage/index"
)

const (
	// scrubRate is about what the scrub of 9.2 TiB in 90 days reads, in bytes per second: twice
	// the necessary rate.
	scrubRate = 2.6e6
	// scrubNar is the size of the nars, a part of this program's machine code.
	scrubNar = 4 << 20
	// scrubWait is how long the scrub may take to begin.
	scrubWait = time.Minute
)

// scrub measures the cost of the scrub for narinfo requests.
func (b *bench) scrub() error {
	work, err := os.MkdirTemp(b.work, "scrub-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	t, err := b.writeTree(b.narinfos, false)
	if err != nil {
		return err
	}
	// Enough for all rounds and what is around them.
	lasts := scrubWait + time.Duration(b.rounds+1)*2*(b.duration+2*time.Second)
	need := int64(scrubRate * lasts.Seconds())
	if err := ensureSpace(work, 2*need); err != nil {
		return err
	}
	var servers []*server
	for _, with := range []bool{true, false} {
		home := filepath.Join(work, fmt.Sprint(with))
		storage, database := filepath.Join(home, "storage"), filepath.Join(home, "nar_herder.db")
		if err := os.MkdirAll(filepath.Join(storage, "nar", "lzip"), 0o755); err != nil {
			return err
		}
		if _, err := b.importTree(database, "", t.dir); err != nil {
			return err
		}
		stored, err := b.storeUnverified(database, storage, need)
		if err != nil {
			return err
		}
		interval := "--scrub-interval=none"
		if with {
			interval = fmt.Sprintf("--scrub-interval=%ds", int64(2*float64(stored)/scrubRate))
		}
		s, err := b.narHerder(database, storage, interval)
		if err != nil {
			return err
		}
		defer s.stop()
		servers = append(servers, s)
	}
	ours, without := servers[0], servers[1]
	read := func() (float64, error) { return ours.metric("narherder_scrub_read_bytes_total") }
	for end := time.Now().Add(scrubWait); ; {
		if n, err := read(); err != nil || n > 0 {
			break // the next call reports the error
		} else if time.Now().After(end) {
			return errors.New("the scrub does not begin")
		}
		time.Sleep(100 * time.Millisecond)
	}
	for _, burst := range []int{1, pipelined} {
		l, err := b.newLoad(t.shuffledPaths(b.seed), burst)
		if err != nil {
			return err
		}
		before, err := read()
		if err != nil {
			return err
		}
		begun := time.Now()
		p, err := b.inTurn(l, ours, without)
		if err != nil {
			return err
		}
		after, err := read()
		if err != nil {
			return err
		}
		rate := (after - before) / time.Since(begun).Seconds()
		if rate < scrubRate/2 {
			return fmt.Errorf("the scrub read %.3g MB/s, want about %.3g", rate/1e6, scrubRate/1e6)
		}
		b.say("the scrub read %.3g MB/s of lzip", rate/1e6)
		b.add(fmt.Sprintf("narinfos, %d at a time, during a scrub, against without", burst), "requests/s ", p.ourRate, p.theirRate, 0.9, false)
	}
	return nil
}

// storeUnverified stores copies of a compressed nar, each for another item, and returns their
// length.
func (b *bench) storeUnverified(database, storage string, need int64) (stored int64, err error) {
	program, err := os.Open(b.binary)
	if err != nil {
		return 0, err
	}
	content := make([]byte, scrubNar)
	_, err = io.ReadFull(program, content)
	if err := errors.Join(err, program.Close()); err != nil {
		return 0, err
	}
	var file bytes.Buffer
	w, err := compression.NewWriter("lzip", 6, &file)
	if err != nil {
		return 0, err
	}
	_, err = w.Write(content)
	if err := errors.Join(err, w.Close()); err != nil {
		return 0, err
	}
	x, err := index.Open(b.ctx, database, index.Options{})
	if err != nil {
		return 0, err
	}
	err = x.Update(b.ctx, func(tx *index.Tx) error {
		for number := 0; stored < need; number++ {
			base := fmt.Sprintf("%032d-stored", number)
			info, err := narinfo.Parse(fmt.Appendf(nil, "StorePath: /gnu/store/%s\nNarHash: %s\nNarSize: %d\nReferences: \nURL: nar/lzip/%[1]s\nCompression: lzip\nFileSize: %[4]d\n",
				base, narinfo.NarHash(sha256.Sum256(content)), len(content), file.Len()))
			if err != nil {
				return err
			}
			if err := os.WriteFile(filepath.Join(storage, "nar", "lzip", base), file.Bytes(), 0o644); err != nil {
				return err
			}
			entry := x.Prepare(info)
			entry.AddedAt, entry.Stored = time.Now(), 1
			if err := tx.Put(entry, nil); err != nil {
				return err
			}
			stored += int64(file.Len())
		}
		return nil
	})
	return stored, errors.Join(err, x.Close())
}
