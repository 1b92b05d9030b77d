package dump

import (
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
	path, instance string

	mu          sync.Mutex
	read        fs.FileInfo // of the manifest as it was read; nil for none
	generations []Generation
}

// NewPublished looks for dumps at the path, of the instance of that name.
func NewPublished(path, instance string) *Published {
	return &Published{path: path, instance: instance}
}

// Name is the base name of the newest database, for a web server that sends it.
func (p *Published) Name() string { return filepath.Base(p.path) }

// Generations returns the dumps that there are, the newest first: two at the most.
// Those of another instance, which had the path before, are not among them. The
// slice is not to be changed.
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
	if p.read != nil && os.SameFile(p.read, now) && p.read.ModTime().Equal(now.ModTime()) && p.read.Size() == now.Size() {
		return p.generations, nil
	}
	m, err := readManifest(p.path)
	if err != nil {
		return nil, err
	}
	var ours []Generation
	for _, g := range m.Generations {
		if g.Instance == p.instance {
			ours = append(ours, g)
		}
	}
	p.read, p.generations = now, ours
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
