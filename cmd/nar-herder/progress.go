package main

import (
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/schollz/progressbar/v3"
	"golang.org/x/term"
)

// progress shows the progress of a long command: a bar on a terminal, and otherwise a line each
// minute. Short commands show nothing.
type progress struct {
	out      io.Writer
	doing    string // "importing"
	what     string // "narinfos", or "" if nothing is counted
	all      int64  // unknown if not positive
	bar      *progressbar.ProgressBar
	start    time.Time
	terminal bool

	mu    sync.Mutex
	timer *time.Timer // nil with a bar; calls tick
	ended bool
	next  time.Time
	items int64
	bytes int64
}

const (
	progressAfter = 2 * time.Second // on a terminal
	progressEvery = time.Minute     // elsewhere
	rateEvery     = time.Second     // on a terminal
)

// newWait shows how long a command has taken that counts nothing: a line each minute, on a terminal as
// well.
func newWait(out io.Writer, doing string) *progress { return newProgress(out, doing, "", 0) }

func newProgress(out io.Writer, doing, what string, all int64) *progress {
	p := &progress{out: out, doing: doing, what: what, all: all, start: time.Now()}
	p.next = p.start.Add(progressEvery)
	if file, ok := out.(*os.File); ok && what != "" && term.IsTerminal(int(file.Fd())) {
		p.terminal = true
		p.next = p.start.Add(progressAfter)
		return p
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.timer = time.AfterFunc(progressEvery, p.tick)
	return p
}

// tick writes a line although a single item takes long.
func (p *progress) tick() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.ended {
		p.show()
		p.timer.Reset(progressEvery)
	}
}

// add counts an item that is done, and its bytes.
func (p *progress) add(bytes int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.items++
	p.bytes += bytes
	if p.bar != nil {
		_ = p.bar.Add(1) // fails when the terminal is closed
	}
	if p.items%64 != 0 && bytes == 0 {
		return // reading the clock costs more than the rest
	}
	p.show()
}

// moved counts bytes of an item that is not done yet.
func (p *progress) moved(bytes int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.bytes += bytes
	p.show()
}

// expect sets the number of items that there are.
func (p *progress) expect(items int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.all = items
	if p.bar != nil {
		p.bar.ChangeMax64(p.all)
	}
}

// reach sets the number of items that are done.
func (p *progress) reach(items int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	more := items - p.items
	if more <= 0 {
		return
	}
	p.items = items
	if p.bar != nil {
		_ = p.bar.Add64(more)
		return
	}
	p.show()
}

// show starts the bar, updates its rate, or writes a line when that is due. The mutex is held.
func (p *progress) show() {
	now := time.Now()
	if now.Before(p.next) {
		return
	}
	rate := ""
	if p.bytes > 0 {
		rate = fmt.Sprintf(", %.1f MB/s", float64(p.bytes)/1e6/now.Sub(p.start).Seconds())
	}
	if p.bar != nil {
		p.next = now.Add(rateEvery)
		p.bar.Describe(p.doing + rate)
		return
	}
	if p.terminal {
		p.next = now.Add(rateEvery)
		most := p.all
		if most <= 0 {
			most = -1 // a bar of unknown length
		}
		p.bar = progressbar.NewOptions64(most, progressbar.OptionSetWriter(p.out), progressbar.OptionSetDescription(p.doing+rate),
			progressbar.OptionShowCount(), progressbar.OptionShowIts(), progressbar.OptionSetItsString(p.what),
			progressbar.OptionThrottle(100*time.Millisecond), progressbar.OptionClearOnFinish())
		_ = p.bar.Add64(p.items)
		return
	}
	p.next = now.Add(progressEvery)
	if p.what == "" {
		fmt.Fprintf(p.out, "%s: %s so far\n", p.doing, now.Sub(p.start).Round(time.Second))
		return
	}
	of := ""
	if p.all > 0 {
		of = fmt.Sprintf(" of %d", p.all)
	}
	nars := ""
	if p.bytes > 0 {
		nars = ", " + byteCount(p.bytes) + " of nars"
	}
	fmt.Fprintf(p.out, "%s: %d%s %s%s, %.0f %s/s%s\n",
		p.doing, p.items, of, p.what, nars, float64(p.items)/now.Sub(p.start).Seconds(), p.what, rate)
}

// clear hides the bar before a line of output.
func (p *progress) clear() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.bar != nil {
		_ = p.bar.Clear()
	}
}

func (p *progress) end() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ended = true
	if p.bar != nil {
		_ = p.bar.Finish()
	}
}

// byteCount formats a number of bytes for people.
func byteCount(n int64) string {
	const units = "KMGTPE"
	if n < 1024 {
		return fmt.Sprintf("%d B", n)
	}
	value, unit := float64(n)/1024, 0
	for value >= 1024 && unit < len(units)-1 {
		value, unit = value/1024, unit+1
	}
	return fmt.Sprintf("%.1f %ciB", value, units[unit])
}
