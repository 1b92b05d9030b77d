package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
)

// tree is a directory of HASH.narinfo files. In a deep tree, they are in subdirectories named
// after the start of the hash.
type tree struct {
	dir    string
	deep   bool
	hashes []string
	bytes  int64 // of all texts
}

// file returns the path of a narinfo in the tree.
func (t *tree) file(hash string) string {
	if t.deep {
		return hash[:2] + "/" + hash + ".narinfo"
	}
	return hash + ".narinfo"
}

// The narinfos of a tree that is not deep have 1 to 3 KB.
const leastText, mostText = 1000, 3 << 10

// writeTree writes generated narinfos, or reuses those that -keep has left.
func (b *bench) writeTree(count int, deep bool) (*tree, error) {
	name := fmt.Sprintf("narinfos-v%d-%d-seed%d", generatorVersion, count, b.seed)
	if deep {
		name += "-deep"
	}
	dir := filepath.Join(b.trees, name)
	t := &tree{dir: dir, deep: deep, hashes: make([]string, 0, count)}
	_, err := os.Stat(dir + ".complete")
	there := err == nil
	if !there {
		// Each file takes one or two blocks, and an inode.
		if err := ensureSpace(b.trees, int64(count)*6<<10); err != nil {
			return nil, err
		}
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, err
		}
	}
	type file struct {
		name string
		text []byte
	}
	files := make(chan file, 1000)
	failures := make(chan error, 4)
	var writers sync.WaitGroup
	for range 4 {
		writers.Go(func() {
			var failure error
			for f := range files {
				if failure == nil {
					failure = os.WriteFile(f.name, f.text, 0o644)
				}
			}
			failures <- failure
		})
	}
	made := make(map[string]bool)
	g := newGenerator(b.seed)
	for len(t.hashes) < count && b.ctx.Err() == nil {
		n := g.next(-1)
		if !deep && (len(n.text) < leastText || len(n.text) > mostText) {
			continue
		}
		t.hashes = append(t.hashes, strings.Clone(n.hash))
		t.bytes += int64(len(n.text))
		if there {
			continue
		}
		name := filepath.Join(dir, t.file(n.hash))
		if below := filepath.Dir(name); !made[below] {
			made[below] = true
			if err := os.MkdirAll(below, 0o755); err != nil {
				return nil, err
			}
		}
		files <- file{name, n.text}
	}
	close(files)
	writers.Wait()
	for range 4 {
		if err := <-failures; err != nil {
			return nil, err
		}
	}
	if err := b.ctx.Err(); err != nil {
		return nil, err
	}
	if there {
		return t, nil
	}
	// Avoid write-back during the next measurement.
	syscall.Sync()
	return t, os.WriteFile(dir+".complete", nil, 0o644)
}

// ensureSpace returns an error unless the bytes and a reserve are free.
func ensureSpace(dir string, bytes int64) error {
	const reserve = 1 << 30
	var fs syscall.Statfs_t
	if err := syscall.Statfs(dir, &fs); err != nil {
		return fmt.Errorf("statfs %s: %w", dir, err)
	}
	if free := int64(fs.Bavail) * fs.Bsize; free < bytes+reserve {
		return fmt.Errorf("%s has %.1f GB free, but %.1f GB are needed: use another directory with -dir, or fewer items with -index",
			dir, float64(free)/1e9, float64(bytes+reserve)/1e9)
	}
	return nil
}
