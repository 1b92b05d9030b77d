package main

import (
	"encoding/base64"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strconv"

	"nar-herder/narinfo"
)

// generator generates narinfos like those of a build farm. The same seed gives the same
// narinfos, and its memory does not grow with their number.
//
// The distribution is assumed, not measured on a farm:
//
//   - A farm rebuilds all packages again and again, in generations of 20,000 items.
//     A generation keeps the names of the previous one, except for 3 in 100 packages
//     with a new version; store hashes are always new. 97 of 100 narinfos name a
//     system, 50 of them x86_64-linux.
//   - The number of references is log-normal with median 20 and sigma 0.6, and 400
//     at most; 3 in 100 items, such as sources, have none. Of the others 70 in 100
//     refer to themselves.
//   - Half of the other references are to the generation's first 500 items, the base
//     of all packages, by Zipf's law: most items refer to the first. The other half
//     is to the previous 20,000 items, by Zipf's law again, newer ones more often.
//     Items only refer to earlier ones, in the order of hashes.
//   - Nar sizes are log-normal with median 180 KB; nars shrink to 20 to 45 %.
//   - Hashes, and r and s of the signature, are incompressible. Signatures are valid.
//     All narinfos have the same key and host name, which are not those of a real
//     farm, so compression dictionaries made for real farms don't contain them.
//
// Most texts have 1 to 3 KB; about one in seven is longer.
type generator struct {
	random *rand.Rand
	signer *signer

	made   int                // number of items so far
	names  []string           // package names of the generation, without outputs
	core   []string           // base names of the generation's first items
	recent [generation]string // base names; item i is at i modulo the length

	rank *rand.Zipf // of core items
	age  *rand.Zipf // of recent items
}

const (
	generation = 20_000
	coreItems  = 500

	// generatorVersion is part of the names of kept trees. Increase it when the output
	// changes.
	generatorVersion = 2
)

func newGenerator(seed uint64) *generator {
	g := &generator{random: rand.New(rand.NewPCG(seed, 0x6e61722d68657264))}
	g.signer = newSigner(seed)
	g.rank = rand.NewZipf(g.random, 1.2, 3, coreItems-1)
	g.age = rand.NewZipf(g.random, 1.1, 100, generation-1)
	return g
}

// generated is a narinfo.
type generated struct {
	hash string // of the store path
	base string // HASH-NAME
	text []byte
}

// next generates the next narinfo. A negative fileSize means a random one.
func (g *generator) next(fileSize int64) generated {
	narSize := 3 * fileSize &^ 7
	if fileSize < 0 {
		narSize = int64(math.Exp(math.Log(180<<10)+2*g.random.NormFloat64()))&^7 + 8
		fileSize = max(int64(float64(narSize)*(0.2+0.25*g.random.Float64())), 40)
	}
	place := g.made % generation
	if place == 0 {
		g.core = g.core[:0]
	}
	switch {
	case place == len(g.names):
		g.names = append(g.names, g.newName())
	case g.random.IntN(100) < 3:
		g.names[place] = g.newName()
	}
	name := g.names[place]
	base := string(g.draw(make([]byte, 0, 96), narinfoAlphabet, narinfo.PathHashLen)) + "-" + name + g.pick(outputs)

	b := make([]byte, 0, 4096)
	b = append(b, "StorePath: "+narinfo.StoreDir+"/"+base+"\nNarHash: sha256:"...)
	b = g.draw(b, "01", 1) // 52 characters hold 260 bits
	b = g.draw(b, narinfoAlphabet, 51)
	b = strconv.AppendInt(append(b, "\nNarSize: "...), narSize, 10)
	b = append(b, "\nReferences: "...)
	for i, reference := range g.references(base) {
		if i > 0 {
			b = append(b, ' ')
		}
		b = append(b, reference...)
	}
	if system := g.pick(systems); system != "" {
		b = append(b, "\nSystem: "+system...)
	}
	b = append(b, "\nDeriver: "...)
	b = g.draw(b, narinfoAlphabet, narinfo.PathHashLen)
	b = append(b, "-"+name+".drv\n"...)
	signature := g.signer.sign(b)
	b = append(b, "Signature: 1;farm.example.org;"...)
	b = base64.StdEncoding.AppendEncode(b, signature)
	b = append(b, "\nURL: nar/lzip/"+base+"\nCompression: lzip\nFileSize: "...)
	b = append(strconv.AppendInt(b, fileSize, 10), '\n')

	g.recent[g.made%generation] = base
	if len(g.core) < coreItems {
		g.core = append(g.core, base)
	}
	g.made++
	return generated{hash: base[:narinfo.PathHashLen], base: base, text: b}
}

const (
	narinfoAlphabet = "0123456789abcdfghijklmnpqrsvwxyz"
	hexDigits       = "0123456789ABCDEF"
)

// draw appends n random characters of an alphabet. The length of the alphabet is a power of
// two and at most 32.
func (g *generator) draw(b []byte, alphabet string, n int) []byte {
	mask := uint64(len(alphabet) - 1)
	var bits uint64
	for i := range n {
		if i%12 == 0 { // 12 times 5 bits
			bits = g.random.Uint64()
		}
		b = append(b, alphabet[bits&mask])
		bits >>= 5
	}
	return b
}

// weighted is a choice with its weight.
type weighted struct {
	text   string
	weight int
}

// A package name is a prefix, one to three pieces, and a version.
var (
	prefixes = []weighted{
		{"", 30}, {"python-", 15}, {"r-", 12}, {"rust-", 10}, {"perl-", 6}, {"emacs-", 6}, {"ghc-", 5},
		{"go-github-com-", 4}, {"texlive-", 4}, {"lib", 3}, {"ruby-", 2}, {"font-", 1}, {"ocaml-", 1}, {"java-", 1},
	}
	outputs = []weighted{{"", 80}, {"-doc", 7}, {"-lib", 6}, {"-debug", 4}, {"-bin", 2}, {"-static", 1}}
	systems = []weighted{
		{"x86_64-linux", 50}, {"aarch64-linux", 20}, {"i686-linux", 15}, {"armhf-linux", 8}, {"powerpc64le-linux", 4}, {"", 3},
	}
	pieces = []string{
		"acl", "agent", "arch", "async", "atlas", "audio", "auth", "base", "batch", "beam", "bind", "bio", "block", "bridge",
		"buffer", "build", "byte", "cache", "canvas", "chart", "check", "chem", "cli", "cloud", "cluster", "code", "color",
		"common", "config", "core", "crypt", "daemon", "data", "date", "decode", "delta", "desk", "diff", "disk", "dns", "draw",
		"edit", "engine", "event", "exec", "extra", "fast", "fetch", "field", "file", "filter", "flow", "form", "frame", "game",
		"gene", "geo", "glyph", "graph", "grid", "hash", "heap", "helper", "hook", "http", "icon", "image", "index", "input",
		"iter", "json", "kernel", "key", "kit", "lang", "layer", "lexer", "link", "list", "loader", "lock", "log", "macro",
		"mail", "map", "mark", "math", "matrix", "media", "mesh", "meta", "mime", "model", "module", "motion", "music", "net",
		"node", "note", "object", "order", "pack", "page", "panel", "parser", "path", "pixel", "plot", "plugin", "pool", "port",
		"print", "proto", "proxy", "query", "queue", "random", "range", "reader", "regex", "remote", "render", "ring", "route",
		"rules", "sample", "scale", "scan", "schema", "script", "seed", "seq", "serial", "server", "shape", "shell", "signal",
		"sim", "socket", "solver", "sort", "sound", "spec", "stack", "stat", "store", "stream", "style", "sync", "table", "task",
		"term", "test", "text", "theme", "thread", "tile", "time", "token", "tool", "trace", "tree", "type", "unit", "util",
		"value", "vector", "video", "view", "wave", "web", "widget", "window", "wire", "word", "writer", "xml", "zip", "zone",
	}
)

// pick returns a random choice.
func (g *generator) pick(from []weighted) string {
	sum := 0
	for _, w := range from {
		sum += w.weight
	}
	n := g.random.IntN(sum)
	for _, w := range from {
		if n -= w.weight; n < 0 {
			return w.text
		}
	}
	panic("unreachable")
}

// newName returns a random package name with a version.
func (g *generator) newName() string {
	name := g.pick(prefixes) + pieces[g.random.IntN(len(pieces))]
	for range g.random.IntN(3) {
		if g.random.IntN(2) == 0 {
			name += "-"
		}
		name += pieces[g.random.IntN(len(pieces))]
	}
	name += fmt.Sprintf("-%d.%d", g.random.IntN(12), g.random.IntN(30))
	switch n := g.random.IntN(20); {
	case n < 13:
		name += fmt.Sprintf(".%d", g.random.IntN(20))
	case n == 19: // a revision without a release
		name += fmt.Sprintf(".0-%d.%07x", g.random.IntN(4), g.random.IntN(1<<28))
	}
	return name
}

// references returns the base names that the next item, self, refers to.
func (g *generator) references(self string) []string {
	if g.random.IntN(100) < 3 {
		return nil
	}
	const median, sigma, most = 20, 0.6, 400
	wanted := min(max(int(math.Round(median*math.Exp(sigma*g.random.NormFloat64()))), 1), most)
	references := make([]string, 0, wanted)
	if g.random.IntN(100) < 70 {
		references = append(references, self)
	}
	// The first items have too few others to refer to, hence the limit.
	for range 8 * wanted {
		if len(references) == wanted || g.made == 0 {
			break
		}
		var reference string
		if g.random.IntN(2) == 0 && len(g.core) > 0 {
			reference = g.core[int(g.rank.Uint64())%len(g.core)]
		} else {
			age := int(g.age.Uint64()) % min(g.made, generation)
			reference = g.recent[(g.made-1-age)%generation]
		}
		if !slices.Contains(references, reference) {
			references = append(references, reference)
		}
	}
	slices.Sort(references)
	return references
}
