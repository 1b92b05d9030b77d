package main

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"nar-herder/narinfo"
	"nar-herder/narinfo/signing"
	"nar-herder/storage"
)

// keysBar is the bar for the rate of a mirror with keys, against the verifier alone.
const keysBar = 0.9

// keys measures how fast a mirror with keys starts from nothing, against the verification of
// the same number of narinfos on all cores.
func (b *bench) keys() error {
	m, done, err := b.newMirroring()
	if err != nil {
		return err
	}
	defer done()
	key := filepath.Join(m.work, "signing-key.pub")
	if err := os.WriteFile(key, []byte(m.made.signer.publicKey()), 0o644); err != nil {
		return err
	}
	var with, without, alone []float64
	for round := range b.rounds + 1 {
		rate, err := b.verifyRate()
		if err != nil {
			return err
		}
		var rates [2]float64
		for i, options := range [][]string{{"--authorized-key=" + key}, nil} {
			directory := filepath.Dir(m.mirrorDatabase)
			if err := os.RemoveAll(directory); err != nil {
				return err
			}
			if err := os.Mkdir(directory, 0o755); err != nil {
				return err
			}
			syscall.Sync()
			took, _, err := m.synced(options...)
			if err != nil {
				return err
			}
			rates[i] = float64(b.items) / took
		}
		b.say("round %d: the verifier %.0f narinfos a second, a mirror with keys %.0f, without %.0f, ratio %.3g", round, rate, rates[0], rates[1], rates[0]/rate)
		if round > 0 { // the first is to warm up
			alone, with, without = append(alone, rate), append(with, rates[0]), append(without, rates[1])
		}
	}
	b.add(fmt.Sprintf("a mirror of %d items with keys, from nothing, against the verifier alone on all cores", b.items), "narinfos/s ", with, alone, keysBar, false)
	b.addFigure("the same without keys", "narinfos/s", median(without), 0, false)
	return nil
}

// verifyRate returns how many narinfos a second are verified on all cores.
func (b *bench) verifyRate() (float64, error) {
	const texts = 2000
	made := newGenerator(b.seed)
	keys, err := signing.ParseKeys([]byte(made.signer.publicKey()))
	if err != nil {
		return 0, err
	}
	all := make([]*narinfo.Narinfo, texts)
	for i := range all {
		if all[i], err = narinfo.Parse(made.next(-1).text); err != nil {
			return 0, err
		}
	}
	var next atomic.Int64
	var failure atomic.Pointer[error]
	var running sync.WaitGroup
	begun := time.Now()
	for range runtime.GOMAXPROCS(0) {
		running.Go(func() {
			for i := next.Add(1) - 1; i < int64(b.items); i = next.Add(1) - 1 {
				if err := storage.Authorize(all[i%texts], keys); err != nil {
					failure.Store(&err)
				}
			}
		})
	}
	running.Wait()
	if err := failure.Load(); err != nil {
		return 0, *err
	}
	return float64(b.items) / time.Since(begun).Seconds(), nil
}
