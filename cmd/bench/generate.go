package main

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"nar-herder/narinfo"
)

// generator makes narinfos like those of a farm, the same for the same seed,
// one after the other and in bounded memory.
//
// What is assumed: names are a language's prefix, a made-up word, a version and
// sometimes an output. A farm builds the world again and again, in generations
// of 20,000 items; an item refers to itself in seven of ten cases, and to others
// of its generation, a third of them to the 200 that are everybody's inputs. The
// number of references is log-normal with median 20. Hashes, sizes and
// signatures are random.
type generator struct {
	random *rand.Rand
	core   []string // of the generation: what everybody refers to
	recent []string // of the generation
}

const (
	generation = 20_000
	coreItems  = 200
)

func newGenerator(seed uint64) *generator {
	return &generator{random: rand.New(rand.NewPCG(seed, seed))}
}

// generated is a narinfo with the parts of it that cases need.
type generated struct {
	hash string // of the store path
	base string // HASH-NAME
	text []byte
}

// next makes the next narinfo. fileSize is that of its nar; below zero for a
// random one.
func (g *generator) next(fileSize int64) generated {
	if len(g.recent) == generation {
		g.recent, g.core = nil, nil
	}
	base := g.text(narinfoAlphabet, narinfo.PathHashLen) + "-" + g.name()
	references := g.references(base)
	g.recent = append(g.recent, base)
	if len(g.core) < coreItems {
		g.core = append(g.core, base)
	}
	if fileSize < 0 {
		fileSize = int64(math.Exp(g.random.NormFloat64()*2 + 11))
	}
	var b bytes.Buffer
	fmt.Fprintf(&b, "StorePath: %s/%s\nNarHash: sha256:%s%s\nNarSize: %d\nReferences:", narinfo.StoreDir, base,
		g.text("01", 1), g.text(narinfoAlphabet, 51), fileSize*4/8*8)
	for _, reference := range references {
		b.WriteString(" " + reference)
	}
	if len(references) == 0 {
		b.WriteByte(' ')
	}
	fmt.Fprintf(&b, "\nSystem: x86_64-linux\nDeriver: %s-%s.drv\nSignature: 1;bayfront;%s\n",
		g.text(narinfoAlphabet, narinfo.PathHashLen), base[33:], base64.StdEncoding.EncodeToString([]byte(g.signature())))
	fmt.Fprintf(&b, "URL: nar/lzip/%s\nCompression: lzip\nFileSize: %d\n", base, fileSize)
	return generated{hash: base[:narinfo.PathHashLen], base: base, text: b.Bytes()}
}

const narinfoAlphabet = "0123456789abcdfghijklmnpqrsvwxyz"

func (g *generator) text(alphabet string, n int) string {
	text := make([]byte, n)
	for i := range text {
		text[i] = alphabet[g.random.IntN(len(alphabet))]
	}
	return string(text)
}

var (
	prefixes  = []string{"", "", "", "python-", "r-", "rust-", "perl-", "emacs-", "ghc-", "go-github-com-", "ruby-", "texlive-", "font-", "lib"}
	syllables = []string{"gra", "ph", "ic", "net", "core", "utils", "mini", "data", "sql", "http", "json", "ser", "de", "auto", "make", "build", "test", "py", "zip", "arch", "crypt", "ssl", "wave", "math", "vec", "tor", "bio", "stat"}
	outputs   = []string{"", "", "", "", "", "", "-doc", "-lib", "-debug", "-bin", ".drv-builder", "-checkout"}
)

func pick[T any](g *generator, from []T) T { return from[g.random.IntN(len(from))] }

func (g *generator) name() string {
	name := pick(g, prefixes)
	for range 2 + g.random.IntN(2) {
		name += pick(g, syllables)
	}
	return fmt.Sprintf("%s-%d.%d.%d%s", name, g.random.IntN(10), g.random.IntN(30), g.random.IntN(20), pick(g, outputs))
}

func (g *generator) references(self string) []string {
	var references []string
	if g.random.IntN(10) < 7 {
		references = append(references, self)
	}
	if len(g.recent) > 0 {
		// The median of exp(N(μ, σ)) is exp(μ).
		wanted := min(int(math.Exp(math.Log(20)+g.random.NormFloat64()*0.6)), 400)
		for len(references) < wanted {
			from := g.recent
			if g.random.IntN(3) == 0 {
				from = g.core
			}
			references = append(references, pick(g, from))
		}
	}
	slices.Sort(references)
	return slices.Compact(references)
}

// signature has the shape that libgcrypt prints.
func (g *generator) signature() string {
	const hex = "0123456789ABCDEF"
	return fmt.Sprintf("(signature \n (data \n  (flags rfc6979)\n  (hash sha256 #%s#)\n  )\n (sig-val \n  (ecdsa \n   (r #0%s#)\n   (s #0%s#)\n   )\n  )\n (public-key \n  (ecc \n   (curve Ed25519)\n   (q #7D602902D3A2DBB83F8A0FB98602A754C5493B0B778C8D1DD4E0F41DE14DE34F#)\n   )\n  )\n )\n",
		g.text(hex, 64), g.text(hex, 63), g.text(hex, 63))
}

// tree is a directory of narinfo files.
type tree struct {
	dir    string
	hashes []string
	bytes  int64 // of all texts
}

// writeTree writes narinfos to dir: HASH.narinfo, or below directories by the
// beginning of the hash when spreadOut is set.
func (b *bench) writeTree(dir string, count int, spreadOut bool) (*tree, error) {
	t := &tree{dir: dir, hashes: make([]string, 0, count)}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	_, err := os.Stat(filepath.Join(dir, ".complete"))
	there := err == nil
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
	for range count {
		if b.ctx.Err() != nil {
			break
		}
		n := g.next(-1)
		t.hashes = append(t.hashes, n.hash)
		t.bytes += int64(len(n.text))
		if there {
			continue
		}
		below := dir
		if spreadOut {
			below = filepath.Join(dir, n.hash[:2])
			if !made[below] {
				made[below] = true
				if err := os.MkdirAll(below, 0o755); err != nil {
					return nil, err
				}
			}
		}
		files <- file{filepath.Join(below, n.hash+".narinfo"), n.text}
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
	return t, os.WriteFile(filepath.Join(dir, ".complete"), nil, 0o644)
}
