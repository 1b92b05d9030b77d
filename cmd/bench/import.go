package main

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"nar-herder/compression"
	"nar-herder/narinfo"
)

const (
	importBytes   = 160 << 20 // of nars, decompressed
	importLargest = 32 << 20
	// importCorpus has real substitutes, all of lzip.
	importCorpus = "testdata/published"
)

// importVerified measures imports, which verify each nar, against decompressing the same files.
func (b *bench) importVerified() error {
	work, err := os.MkdirTemp(b.work, "import-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	plain := filepath.Join(work, "plain")
	if err := b.codecInput(plain); err != nil {
		return err
	}
	for _, kind := range []struct {
		name  string
		level int
		bar   float64
	}{{"lzip", 6, 0.9}, {"zstd", 3, 0}} {
		source := filepath.Join(work, kind.name)
		if err := b.importSource(source, plain, kind.name, kind.level); err != nil {
			return err
		}
		if err := b.compareImport(work, source, kind.name, kind.bar); err != nil {
			return err
		}
	}
	return nil
}

// importSource writes narinfos and nars: pieces of the plain file with sizes like those of a
// build farm, and for lzip the corpus.
func (b *bench) importSource(source, plain, kind string, level int) error {
	if err := os.MkdirAll(filepath.Join(source, "nar", kind), 0o755); err != nil {
		return err
	}
	if kind == "lzip" {
		if err := os.CopyFS(source, os.DirFS(importCorpus)); err != nil {
			return fmt.Errorf("run it in the root of the source tree: %w", err)
		}
	}
	content, err := os.ReadFile(plain)
	if err != nil {
		return err
	}
	random := rand.New(rand.NewPCG(b.seed, 0))
	g := newGenerator(b.seed)
	var writers errgroup.Group
	writers.SetLimit(runtime.NumCPU())
	for left := int64(importBytes); left > 0; {
		size := int64(math.Exp(math.Log(180<<10) + 2*random.NormFloat64()))
		size = max(min(size, importLargest, left), 200)
		left -= size
		from := random.Int64N(int64(len(content)))
		item := g.next(size)
		writers.Go(func() error { return writeImported(source, item, content, from, size, kind, level) })
	}
	return writers.Wait()
}

// writeImported writes an item with a nar from the content, which is repeated if it is too
// short.
func writeImported(source string, item generated, content []byte, from, size int64, kind string, level int) (err error) {
	name := "nar/" + kind + "/" + item.base
	file, err := os.Create(filepath.Join(source, name))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	writer, err := compression.NewWriter(kind, level, file)
	if err != nil {
		return err
	}
	sum := sha256.New()
	for left := size; left > 0; from = 0 {
		piece := content[from:]
		piece = piece[:min(int64(len(piece)), left)]
		left -= int64(len(piece))
		sum.Write(piece)
		if _, err := writer.Write(piece); err != nil {
			return err
		}
	}
	if err := errors.Join(writer.Close(), file.Sync()); err != nil {
		return err
	}
	info, err := file.Stat()
	if err != nil {
		return err
	}
	text := fmt.Sprintf("StorePath: %s/%s\nNarHash: %s\nNarSize: %d\nReferences: \nURL: %s\nCompression: %s\nFileSize: %d\n",
		narinfo.StoreDir, item.base, narinfo.NarHash(sum.Sum(nil)), size, name, kind, info.Size())
	return os.WriteFile(filepath.Join(source, item.hash+".narinfo"), []byte(text), 0o644)
}

// compareImport measures imports that move and that copy the nars of a source.
func (b *bench) compareImport(work, source, kind string, bar float64) error {
	var moved, copied, unverified times
	var size float64
	decoder := func() (float64, error) {
		begin := time.Now()
		n, err := decodeAll(filepath.Join(source, "nar"))
		size = float64(n)
		return time.Since(begin).Seconds(), err
	}
	ours := func(options ...string) func() (float64, error) {
		return func() (float64, error) {
			dir, err := os.MkdirTemp(work, "round-")
			if err != nil {
				return 0, err
			}
			defer os.RemoveAll(dir)
			from, storage := source, filepath.Join(dir, "storage")
			if err := os.Mkdir(storage, 0o755); err != nil {
				return 0, err
			}
			if len(options) == 0 {
				from = filepath.Join(dir, "source")
				if err := copyTree(from, source); err != nil {
					return 0, err
				}
			}
			took, err := b.importWith(filepath.Join(dir, "nar_herder.db"), from, append(options, "--storage="+storage)...)
			return took.Seconds(), err
		}
	}
	for range b.rounds {
		err := errors.Join(moved.add(ours(), decoder), copied.add(ours("--keep"), decoder), unverified.add(ours("--keep", "--no-verify"), decoder))
		if err != nil {
			return err
		}
	}
	label := fmt.Sprintf("import of %s, %.0f MB of nars, against decompressing them", kind, size/1e6)
	b.add(label+", moved", "MB/s ", perSecond(size, moved.ours), perSecond(size, moved.theirs), bar, false)
	b.add(label+", copied", "MB/s ", perSecond(size, copied.ours), perSecond(size, copied.theirs), bar, false)
	b.add(label+", copied with --no-verify", "MB/s ", perSecond(size, unverified.ours), perSecond(size, unverified.theirs), 0, false)
	return nil
}

// copyTree copies a directory and flushes the files.
func copyTree(to, from string) error {
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		return err
	}
	return filepath.WalkDir(to, func(name string, entry fs.DirEntry, err error) error {
		if err != nil || !entry.Type().IsRegular() {
			return err
		}
		file, err := os.Open(name)
		if err != nil {
			return err
		}
		return errors.Join(file.Sync(), file.Close())
	})
}

// decodeAll decompresses all files below a directory, one per core at a time, and returns the
// number of bytes.
func decodeAll(dir string) (int64, error) {
	var decoded atomic.Int64
	var readers errgroup.Group
	readers.SetLimit(runtime.NumCPU())
	err := filepath.WalkDir(dir, func(name string, entry fs.DirEntry, err error) error {
		if err != nil || !entry.Type().IsRegular() {
			return err
		}
		kind := strings.TrimSuffix(strings.TrimPrefix(filepath.Dir(name), dir), "/")
		kind = strings.TrimPrefix(kind, "/")
		if kind == "" {
			kind = compression.None
		}
		readers.Go(func() error {
			file, err := os.Open(name)
			if err != nil {
				return err
			}
			defer file.Close()
			reader, err := compression.NewReader(kind, file)
			if err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			defer reader.Close()
			n, err := io.Copy(io.Discard, reader)
			decoded.Add(n)
			return err
		})
		return nil
	})
	return decoded.Load(), errors.Join(err, readers.Wait())
}
