package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/term"

	"nar-herder/internal/redact"
	"nar-herder/storage/transfer"
)

// copyReport reports a copy.
type copyReport struct {
	out, err io.Writer
	json     bool
	progress *copyProgress
}

// file reports a file with a problem, and counts the others.
func (r *copyReport) file(result transfer.Result) {
	r.progress.done(result)
	if result.Err == nil {
		return
	}
	r.progress.clear()
	if r.json {
		encodeLine(json.NewEncoder(redact.JSON{W: r.out}), copied{result.Name, result.Outcome.String(), result.Size, result.Err.Error()})
		return
	}
	printf(r.err, "nar-herder: copy-storage %s: %s: %s\n", result.Name, result.Outcome, oneLine(result.Err))
}

// summary reports the result, and what to do next.
func (r *copyReport) summary(c *copyStorageCommand, s *transfer.Summary, complete bool) {
	if r.json {
		encodeLine(json.NewEncoder(redact.JSON{W: r.out}), copyTotals{
			Copied: s.Files[transfer.Copied], CopiedBytes: s.Bytes[transfer.Copied], Verified: s.Verified, Replaced: s.Replaced,
			There: s.Files[transfer.There], ThereBytes: s.Bytes[transfer.There], Gone: s.Files[transfer.Gone],
			Wrong: s.Files[transfer.Wrong], Differ: s.Files[transfer.Differs], Failed: s.Files[transfer.Failed], Complete: complete,
		})
		return
	}
	copied, compared := "copied", "by their sizes"
	if c.DryRun {
		copied = "would be copied"
	}
	if c.Compare {
		compared = "byte for byte"
	}
	printf(r.out, "%s: %d files, %s", copied, s.Files[transfer.Copied], byteCount(s.Bytes[transfer.Copied]))
	if s.Verified > 0 {
		printf(r.out, "; %d of them verified by their NarHash", s.Verified)
	}
	if s.Replaced > 0 {
		printf(r.out, "; %d of them replaced another file", s.Replaced)
	}
	printf(r.out, "\nalready there, %s: %d files, %s\n", compared, s.Files[transfer.There], byteCount(s.Bytes[transfer.There]))
	if gone := s.Files[transfer.Gone]; gone > 0 {
		printf(r.out, "removed from the source meanwhile: %d files\n", gone)
	}
	if !s.Complete() {
		printf(r.out, "not copied: %d files are wrong in the source, %d differ, %d failed\n",
			s.Files[transfer.Wrong], s.Files[transfer.Differs], s.Files[transfer.Failed])
	}
	switch {
	case c.DryRun:
	case complete:
		printf(r.out, "next: stop the server that adds to %s, run this once more for new files, and start the server with --storage=%s\n", c.From, c.To)
	case s.Files[transfer.Wrong] > 0:
		printf(r.out, "next: repair the wrong ones with 'nar-herder check --storage=%s --verify --repair --from=URL', and run this again: it skips files that are there\n", c.From)
	default:
		fmt.Fprintln(r.out, "next: run this again: it skips files that are there")
	}
}

// copyProgress shows the progress of a copy: a line that changes on a terminal, and otherwise
// a line from time to time. Its methods may be called concurrently.
type copyProgress struct {
	out      io.Writer
	terminal bool
	compare  bool

	mu              sync.Mutex
	start, next     time.Time
	timer           *time.Timer // nil on a terminal; calls tick
	shown           bool        // a line is on the terminal
	files, allFiles int64
	allBytes        int64 // of all files; unknown if not positive
	skipped, read   int64 // bytes
}

// progressTick is how often the line on a terminal changes.
const progressTick = 200 * time.Millisecond

func newCopyProgress(out io.Writer, compare bool) *copyProgress {
	p := &copyProgress{out: out, compare: compare, start: time.Now()}
	p.next = p.start.Add(progressAfter)
	if file, ok := out.(*os.File); ok {
		p.terminal = term.IsTerminal(int(file.Fd()))
	}
	if !p.terminal {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.timer = time.AfterFunc(progressEvery, p.tick)
	}
	return p
}

// tick writes a line although nothing moves.
func (p *copyProgress) tick() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.timer != nil {
		p.show(time.Now())
		p.timer.Reset(progressEvery)
	}
}

// expect sets the totals, as far as the index knows.
func (p *copyProgress) expect(files, bytes int64) { p.allFiles, p.allBytes = files, bytes }

// moved counts bytes that were read.
func (p *copyProgress) moved(bytes int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.read += bytes
	p.show(time.Now())
}

// done counts a file.
func (p *copyProgress) done(result transfer.Result) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.files++
	if result.Outcome == transfer.There && !p.compare {
		p.skipped += result.Size
	}
	p.show(time.Now())
}

// listed shows how many files of the target are known.
func (p *copyProgress) listed(files int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.write(time.Now(), fmt.Sprintf("listing: %d files of the target", files))
}

func (p *copyProgress) show(now time.Time) {
	if now.Before(p.next) {
		return // don't format the line
	}
	p.write(now, p.line(now.Sub(p.start)))
}

func (p *copyProgress) write(now time.Time, line string) {
	switch {
	case now.Before(p.next):
	case p.terminal:
		p.next, p.shown = now.Add(progressTick), true
		fmt.Fprint(p.out, "\r\x1b[K", line)
	default:
		p.next = now.Add(progressEvery)
		fmt.Fprintln(p.out, line)
	}
}

// line returns the progress after some time, with the time left.
func (p *copyProgress) line(after time.Duration) string {
	of := func(done, all int64, format func(int64) string) string {
		if all < done || all <= 0 {
			return format(done)
		}
		return format(done) + " of " + format(all)
	}
	number := func(n int64) string { return fmt.Sprint(n) }
	done := p.skipped + p.read
	rate := float64(p.read) / max(after.Seconds(), 0.001)
	text := "copying: " + of(p.files, p.allFiles, number) + " files, " + of(done, p.allBytes, byteCount) + ", " + byteCount(int64(rate)) + "/s"
	if left := p.allBytes - done; left > 0 && rate >= 1 {
		text += fmt.Sprintf(", %s left", time.Duration(float64(left)/rate*float64(time.Second)).Round(time.Second))
	}
	return text
}

// clear removes the line on the terminal before a line of output.
func (p *copyProgress) clear() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.shown {
		p.shown = false
		fmt.Fprint(p.out, "\r\x1b[K")
	}
}

func (p *copyProgress) end() {
	p.clear()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.timer != nil {
		p.timer.Stop()
		p.timer = nil
	}
}
