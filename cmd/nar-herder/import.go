package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"time"

	"github.com/schollz/progressbar/v3"
	"golang.org/x/term"

	"nar-herder/storage"
	"nar-herder/storage/index"
)

type importCommand struct {
	databaseOption `embed:""`

	Storage               string     `placeholder:"DIR" help:"Directory of the stored nars. Without it, only narinfos are imported."`
	Tag                   []tagValue `sep:"none" placeholder:"KEY=VALUE" help:"Tag for the items. May be repeated."`
	EnsureReferencesExist bool       `help:"Refuse items that refer to others without a narinfo."`
	Keep                  bool       `help:"Copy nars into the storage, where they are moved otherwise."`
	Replace               bool       `help:"Take another nar of an item that is being served already."`

	Names []string `arg:"" name:"file-or-directory" help:"Narinfo files, or directories to search for them."`
}

// importCache is the writer's page cache for imports: they touch all of the
// index of hashes.
const importCache = 128 << 20

func (c *importCommand) Run(ctx context.Context, s *streams) (err error) {
	log := slog.New(slog.NewTextHandler(s.err, &slog.HandlerOptions{Level: slog.LevelWarn}))
	store, err := open(ctx, c.Database, c.Storage, index.Options{WriterCache: importCache, Bulk: true}, log)
	if err != nil {
		return err
	}
	defer func() {
		if closeErr := store.close(); err == nil {
			err = closeErr
		}
	}()
	progress := newProgress(s.err)
	var summary storage.Summary
	err = store.Import(ctx, c.Names, storage.ImportOptions{
		Keep: c.Keep, Replace: c.Replace, WithReferences: c.EnsureReferencesExist, Tags: tags(c.Tag),
	}, func(imported storage.Imported) {
		summary.Count(imported.Result)
		progress.add(imported.Bytes)
		if imported.Outcome == storage.Failed {
			progress.clear()
			fmt.Fprintf(s.err, "nar-herder: import %s: %v\n", imported.File, imported.Err)
		} else if imported.Outcome != storage.Added && imported.Outcome != storage.Known {
			progress.clear()
			fmt.Fprintf(s.out, "%s: %s", imported.File, imported.Outcome)
			if imported.Note != "" {
				fmt.Fprintf(s.out, ": %s", imported.Note)
			}
			fmt.Fprintln(s.out)
		}
	})
	progress.end()
	fmt.Fprintf(s.out, "%s; %s of nars came into the storage\n", &summary, byteCount(summary.Bytes))
	if err != nil {
		return fmt.Errorf("import: %w", err)
	}
	if summary.Outcomes[storage.Failed] > 0 {
		return errReported
	}
	return nil
}

// progress shows how far a long command is: a bar on a terminal, a line now and
// then elsewhere. Short ones show nothing.
type progress struct {
	out      io.Writer
	bar      *progressbar.ProgressBar
	start    time.Time
	next     time.Time
	terminal bool
	items    int
	bytes    int64
}

const (
	progressAfter = 2 * time.Second
	progressEvery = 10 * time.Second
)

func newProgress(out io.Writer) *progress {
	p := &progress{out: out, start: time.Now()}
	p.next = p.start.Add(progressAfter)
	if file, ok := out.(*os.File); ok {
		p.terminal = term.IsTerminal(int(file.Fd()))
	}
	return p
}

// add notes an item that is done.
func (p *progress) add(bytes int64) {
	p.items++
	p.bytes += bytes
	if p.bar != nil {
		_ = p.bar.Add(1) // of a terminal that went away
		return
	}
	if p.items%64 != 0 && bytes == 0 {
		return // the clock costs more than the rest of this
	}
	now := time.Now()
	if now.Before(p.next) {
		return
	}
	if p.terminal {
		p.bar = progressbar.NewOptions(-1, progressbar.OptionSetWriter(p.out), progressbar.OptionSetDescription("importing"),
			progressbar.OptionShowCount(), progressbar.OptionShowIts(), progressbar.OptionSetItsString("narinfos"),
			progressbar.OptionThrottle(100*time.Millisecond), progressbar.OptionClearOnFinish())
		_ = p.bar.Add(p.items)
		return
	}
	p.next = now.Add(progressEvery)
	fmt.Fprintf(p.out, "importing: %d narinfos, %s of nars, %.0f narinfos/s\n",
		p.items, byteCount(p.bytes), float64(p.items)/now.Sub(p.start).Seconds())
}

// clear makes room for a line of output.
func (p *progress) clear() {
	if p.bar != nil {
		_ = p.bar.Clear()
	}
}

func (p *progress) end() {
	if p.bar != nil {
		_ = p.bar.Finish()
	}
}

// byteCount writes a number of bytes for people.
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
