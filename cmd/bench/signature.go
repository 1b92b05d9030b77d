package main

import (
	"crypto/ed25519"
	"crypto/rand"
	"fmt"
	"syscall"
	"time"

	"nar-herder/narinfo"
	"nar-herder/narinfo/signing"
)

// signature measures verifications of narinfos per second of one core, parsing included,
// against Go's Ed25519, which is EdDSA on the same curve.
func (b *bench) signature() error {
	key, err := signing.GenerateKey(rand.Reader)
	if err != nil {
		return err
	}
	keys, err := signing.ParseKeys([]byte(key.Public()))
	if err != nil {
		return err
	}
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return err
	}
	texts, signatures := make([][]byte, 1000), make([][]byte, 1000)
	generator := newGenerator(b.seed)
	for i := range texts {
		unsigned, err := narinfo.Parse(generator.next(-1).text)
		if err != nil {
			return err
		}
		if texts[i], err = unsigned.Sign(key, "bench"); err != nil {
			return err
		}
		signatures[i] = ed25519.Sign(private, texts[i])
	}
	parsed := new(narinfo.Narinfo)
	verify := func(i int) error {
		if err := narinfo.ParseInto(parsed, texts[i]); err != nil {
			return err
		}
		return parsed.CheckSignature(keys)
	}
	verifyEd25519 := func(i int) error {
		if !ed25519.Verify(public, texts[i], signatures[i]) {
			return fmt.Errorf("Ed25519: signature %d isn't valid", i)
		}
		return nil
	}
	var ours, theirs []float64
	for range b.rounds {
		for _, side := range []struct {
			verify func(int) error
			rates  *[]float64
		}{{verify, &ours}, {verifyEd25519, &theirs}} {
			rate, err := b.perCoreSecond(len(texts), side.verify)
			if err != nil {
				return err
			}
			*side.rates = append(*side.rates, rate)
		}
	}
	b.add("signatures verified, one core, against Go's Ed25519", "/s ", ours, theirs, 0, false)
	b.addFigure("signatures verified, one core", "/s", median(ours), 10_000, false)
	return nil
}

// perCoreSecond calls work with the numbers below count, in turn, until the duration is over.
// It returns the number of calls per second of CPU time, so that other work on the machine
// counts less.
func (b *bench) perCoreSecond(count int, work func(int) error) (float64, error) {
	before, end := cpuTime(), time.Now().Add(b.duration)
	calls := 0
	for ; time.Now().Before(end) && b.ctx.Err() == nil; calls++ {
		if err := work(calls % count); err != nil {
			return 0, err
		}
	}
	return float64(calls) / (cpuTime() - before).Seconds(), b.ctx.Err()
}

// cpuTime returns the CPU time of this process.
func cpuTime() time.Duration {
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		panic(err) // it fails for bad arguments only
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}
