package main

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"time"

	"nar-herder/narinfo"
	"nar-herder/storage/index"
)

// shuffledPaths returns the URL paths of the narinfos in random order.
func (t *tree) shuffledPaths(seed uint64) []string {
	return shuffled(t.hashes, seed, func(hash string) string { return "/" + hash + ".narinfo" })
}

// filePaths returns the paths of the files in the tree, in the same order.
func (t *tree) filePaths(seed uint64) []string {
	return shuffled(t.hashes, seed, func(hash string) string { return "/" + t.file(hash) })
}

func shuffled(hashes []string, seed uint64, path func(string) string) []string {
	paths := make([]string, len(hashes))
	for i, hash := range hashes {
		paths[i] = path(hash)
	}
	rand.New(rand.NewPCG(seed, 0)).Shuffle(len(paths), func(i, j int) { paths[i], paths[j] = paths[j], paths[i] })
	return paths
}

// narinfoServers starts both servers on the same narinfos, with TLS if they should be secure.
func (b *bench) narinfoServers(secure bool) (t *tree, ours, theirs *server, err error) {
	if t, err = b.writeTree(b.narinfos, false); err != nil {
		return nil, nil, nil, err
	}
	work, err := os.MkdirTemp(b.work, "server-")
	if err != nil {
		return nil, nil, nil, err
	}
	database := filepath.Join(work, "nar_herder.db")
	if _, err := b.importTree(database, "", t.dir); err != nil {
		return nil, nil, nil, err
	}
	ours, theirs, err = b.both(database, work, t.dir, secure)
	return t, ours, theirs, err
}

func (b *bench) narinfo() error {
	t, ours, theirs, err := b.narinfoServers(false)
	if err != nil {
		return err
	}
	defer ours.stop()
	defer theirs.stop()
	return b.compareNarinfos("narinfos", t, ours, theirs, 1.2, 0.75, 9)
}

// cached measures the cost of cached nars for narinfo requests, with two of our servers. One
// has a cached nar for every second item.
func (b *bench) cached() error {
	t, err := b.writeTree(b.narinfos, false)
	if err != nil {
		return err
	}
	work, err := os.MkdirTemp(b.work, "cached-")
	if err != nil {
		return err
	}
	storage, cache := filepath.Join(work, "storage"), filepath.Join(work, "zstd")
	for _, dir := range []string{storage, cache} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			return err
		}
	}
	with, without := filepath.Join(work, "with.db"), filepath.Join(work, "without.db")
	for _, database := range []string{with, without} {
		if _, err := b.importTree(database, "", t.dir); err != nil {
			return err
		}
	}
	if err := b.pretendCached(with, cache, t.hashes); err != nil {
		return err
	}
	for _, c := range []struct {
		name    string
		options []string
		bar     float64
	}{
		{"narinfos with cached nars, against without", nil, 0.95},
		{"the same, no answer kept", []string{"--narinfo-cache-size=0"}, 0},
	} {
		ours, err := b.narHerder(with, storage, append(c.options, "--enable-cached-compression=zstd", "--cached-compression-directory=zstd="+cache)...)
		if err != nil {
			return err
		}
		plain, err := b.narHerder(without, storage, c.options...)
		if err != nil {
			ours.stop()
			return err
		}
		text, err := ours.get("/" + t.hashes[0] + ".narinfo")
		switch {
		case err != nil:
		case !bytes.Contains(text, []byte("Compression: zstd\n")):
			err = fmt.Errorf("the narinfo does not list its cached nar: %s", text)
		default:
			err = b.compareNarinfos(c.name, t, ours, plain, c.bar, 0, c.bar)
		}
		ours.stop()
		plain.stop()
		if err != nil {
			return err
		}
	}
	return nil
}

// pretendCached records a cached file of one byte for every second item.
func (b *bench) pretendCached(database, dir string, hashes []string) error {
	x, err := index.Open(b.ctx, database, index.Options{})
	if err != nil {
		return err
	}
	err = x.Update(b.ctx, func(tx *index.Tx) error {
		for i := 0; i < len(hashes); i += 2 {
			hash, err := narinfo.ParsePathHash([]byte(hashes[i]))
			if err != nil {
				return err
			}
			row, err := tx.Item(hash)
			if err != nil {
				return err
			}
			n, err := narinfo.Parse(row.Text)
			if err != nil {
				return err
			}
			if err := os.WriteFile(filepath.Join(dir, n.StorePath.BaseName()), []byte{0}, 0o644); err != nil {
				return err
			}
			if err := tx.PutCached(index.CachedFile{Hash: hash, Type: "zstd", Size: 1, LastUsed: time.Now()}); err != nil {
				return err
			}
		}
		return nil
	})
	return errors.Join(err, x.Close())
}

// compareNarinfos measures a server of narinfos against nginx, with bars for the rate of single
// requests, their processor time, and the rate of pipelined ones.
func (b *bench) compareNarinfos(name string, t *tree, ours, theirs *server, rateBar, cpuBar, pipelinedBar float64) error {
	paths := t.shuffledPaths(b.seed)
	for _, path := range paths[:min(20, len(paths))] {
		a, err := ours.get(path)
		if err != nil {
			return err
		}
		z, err := theirs.get(path)
		if err != nil {
			return err
		}
		// Ours may list cached nars at the end.
		if !bytes.HasPrefix(a, z) {
			return fmt.Errorf("%s and %s answer differently to %s", ours.name, theirs.name, path)
		}
	}
	single, err := b.newLoad(paths, 1)
	if err != nil {
		return err
	}
	p, err := b.inTurn(single, ours, theirs)
	if err != nil {
		return err
	}
	b.add(name+", one at a time", "requests/s ", p.ourRate, p.theirRate, rateBar, false)
	b.add(name+", one at a time, processor time", "µs/request ", p.ourCPU, p.theirCPU, cpuBar, true)
	pipelined, err := b.newLoad(paths, pipelined)
	if err != nil {
		return err
	}
	if p, err = b.inTurn(pipelined, ours, theirs); err != nil {
		return err
	}
	b.add(name+", 64 pipelined", "requests/s ", p.ourRate, p.theirRate, pipelinedBar, false)
	return nil
}
