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

// Published are the dumps of an instance that lie at a path, for those who serve
// them. It notices when any process makes a new one. Its methods may be called from
// several goroutines at once.
type Published struct {
	path  string
	index Source

	mu          sync.Mutex
	last        int64       // the newest change of the index, as of when it mattered
	read        fs.FileInfo // of the manifest as it was read; nil for none
	generations []Generation
}

// Source is the index that dumps are of.
type Source interface {
	// Instance is its name.
	Instance() string
	// LastChange is the id of the newest of its changes.
	LastChange(ctx context.Context) (int64, error)
	// ChangeMark tells a change from another with its id; "" where that is not known.
	ChangeMark(ctx context.Context, id int64) (string, error)
}

// NewPublished looks for dumps of the index at the path.
func NewPublished(path string, index Source) *Published {
	return &Published{path: path, index: index}
}

// Name is the base name of the newest database, for a web server that sends it.
func (p *Published) Name() string { return filepath.Base(p.path) }

// Generations returns the dumps that there are, the newest first: two at the most.
// Those of another instance, which had the path before, are not among them, nor
// those with changes that the index does not have, as after a backup of it was put
// back: who began with one would never go on. The slice is not to be changed.
func (p *Published) Generations() ([]Generation, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	// A manifest is never changed, only replaced by another file.
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
	return p.ours(p.generations)
}

// ours returns those generations that the index has been through. The mutex is held.
func (p *Published) ours(all []Generation) (ours []Generation, err error) {
	for _, g := range all {
		if g.Instance != p.index.Instance() {
			continue
		}
		if g.LastChange > p.last {
			// While the program runs, it never becomes less.
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
			ours = append(ours, g)
		}
	}
	return ours, nil
}

// Open opens a file of a dump, which is the caller's to close. The error is
// [fs.ErrNotExist] when a newer dump has taken its place.
func (p *Published) Open(file File) (*os.File, error) {
	opened, err := os.Open(filepath.Join(filepath.Dir(p.path), file.Name))
	if err != nil {
		return nil, fmt.Errorf("open a dump: %w", err)
	}
	info, err := opened.Stat()
	if err == nil && (!info.Mode().IsRegular() || info.Size() != file.Size) {
		err = fmt.Errorf("%s has %d bytes and not %d: somebody has changed it; make another with 'nar-herder dump'", opened.Name(), info.Size(), file.Size)
	}
	if err != nil {
		opened.Close()
		return nil, fmt.Errorf("open a dump: %w", err)
	}
	return opened, nil
}

// whole looks for the files of a dump, and at their sizes.
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
