package dump

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
)

// Published are the published dumps of an instance. It notices new ones of any process. Its
// methods may be called from several goroutines at once.
type Published struct {
	path  string
	index Source

	mu          sync.Mutex
	last        int64       // the newest known change of the index
	read        fs.FileInfo // of the manifest as it was read; nil for none
	generations []Generation
}

// Source is the index that dumps are of.
type Source interface {
	// Instance is its name.
	Instance() string
	// LastChange is the id of the newest of its changes.
	LastChange(ctx context.Context) (int64, error)
	// ChangeMark returns the mark of a change, which differs between two changes with the
	// same id; "" if unknown.
	ChangeMark(ctx context.Context, id int64) (string, error)
}

// NewPublished returns the dumps of an index at a path.
func NewPublished(path string, index Source) *Published {
	return &Published{path: path, index: index}
}

// Name returns the base name of the newest database, for a web server that sends it.
func (p *Published) Name() string { return filepath.Base(p.path) }

// Generations returns up to two dumps, the newest first. It leaves out those of another
// instance that used the path before, and those with changes that the index doesn't have, as
// after a backup was restored: a mirror that started from one could not follow. The slice
// must not be changed.
func (p *Published) Generations() ([]Generation, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	// A manifest never changes: another file replaces it.
	now, err := os.Stat(p.path + manifestSuffix)
	if errors.Is(err, fs.ErrNotExist) {
		p.read, p.generations = nil, nil
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("look for a dump: %w", err)
	}
	if p.read == nil || !os.SameFile(p.read, now) || !p.read.ModTime().Equal(now.ModTime()) || p.read.Size() != now.Size() {
		m, err := readManifest(p.path)
		if err != nil {
			return nil, err
		}
		p.read, p.generations = now, m.Generations
	}
	return p.own(p.generations)
}

// own returns those generations that are states of the index. The mutex is held.
func (p *Published) own(all []Generation) (own []Generation, err error) {
	for _, g := range all {
		if g.Instance != p.index.Instance() {
			continue
		}
		if g.LastChange > p.last {
			// It never decreases while the program runs.
			if p.last, err = p.index.LastChange(context.Background()); err != nil {
				return nil, fmt.Errorf("look for a dump: %w", err)
			}
		}
		if g.LastChange > p.last {
			continue
		}
		// Other changes may have got the same ids since.
		mark, err := p.index.ChangeMark(context.Background(), g.LastChange)
		if err != nil {
			return nil, fmt.Errorf("look for a dump: %w", err)
		}
		if g.Mark == "" || mark == "" || g.Mark == mark {
			own = append(own, g)
		}
	}
	return own, nil
}

// Open opens a file of a dump. The error is [fs.ErrNotExist] if a newer dump has replaced it.
func (p *Published) Open(file File) (*os.File, error) {
	opened, err := os.Open(filepath.Join(filepath.Dir(p.path), file.Name))
	if err != nil {
		return nil, fmt.Errorf("open a dump: %w", err)
	}
	info, err := opened.Stat()
	if err == nil && (!info.Mode().IsRegular() || info.Size() != file.Size) {
		err = fmt.Errorf("%s has %d bytes and not %d: another program has changed it; make another with 'nar-herder dump'", opened.Name(), info.Size(), file.Size)
	}
	if err != nil {
		opened.Close()
		return nil, fmt.Errorf("open a dump: %w", err)
	}
	return opened, nil
}

// whole checks that the files of a dump exist and have the right sizes.
func (p *Published) whole(g Generation) error {
	for _, file := range g.files() {
		opened, err := p.Open(file)
		if err != nil {
			return err
		}
		opened.Close()
	}
	return nil
}
