package main

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"nar-herder/internal/testlog"
	"nar-herder/storage/transfer"
)

// TestCopyProgress checks the progress lines of a copy.
func TestCopyProgress(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var out strings.Builder
		p := newCopyProgress(&out, false)
		p.expect(20, 10<<20)
		p.done(transfer.Result{Outcome: transfer.There, Size: 6 << 20})
		for range 70 {
			time.Sleep(time.Second)
			p.moved(20 << 10)
		}
		p.done(transfer.Result{Outcome: transfer.Copied, Size: 2000 << 10})
		p.listed(3000)
		p.end()
		want := "copying: 1 of 20 files, 6.0 MiB of 10.0 MiB, 20.0 KiB/s, 3m23s left\n" +
			"copying: 1 of 20 files, 7.2 MiB of 10.0 MiB, 20.0 KiB/s, 2m23s left\n"
		if out.String() != want {
			t.Errorf("%s\nwant\n%s", out.String(), want)
		}
		// If the storage has more files than the index, the total is unknown.
		p.expect(0, 0)
		time.Sleep(time.Minute)
		out.Reset()
		p.moved(1 << 20)
		if want := "copying: 2 files, 8.4 MiB, 18.6 KiB/s\n"; out.String() != want {
			t.Errorf("%q, want %q", out.String(), want)
		}
		time.Sleep(time.Minute)
		out.Reset()
		p.listed(5000)
		if want := "listing: 5000 files of the target\n"; out.String() != want {
			t.Errorf("%q", out.String())
		}
		// A terminal has one line, which other lines replace.
		p.terminal = true
		time.Sleep(time.Minute)
		out.Reset()
		p.moved(0)
		p.clear()
		if got := out.String(); !strings.HasPrefix(got, "\r\x1b[Kcopying: 2 files") || !strings.HasSuffix(got, "/s\r\x1b[K") || strings.Contains(got, "\n") {
			t.Errorf("%q", got)
		}
	})
}

// TestCopyWaits: a copy writes a line each minute while the storages don't answer.
func TestCopyWaits(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		out := new(testlog.Buffer)
		p := newCopyProgress(out, false)
		time.Sleep(2*progressEvery + time.Second)
		synctest.Wait()
		p.end()
		time.Sleep(2 * progressEvery)
		if got := out.String(); strings.Count(got, "copying: 0 files, 0 B, 0 B/s\n") != 2 {
			t.Errorf("%s", got)
		}
	})
}
