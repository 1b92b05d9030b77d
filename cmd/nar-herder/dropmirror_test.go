package main

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"nar-herder/narinfo"
)

// wantDecoded asserts that each nar that a server announces is served and decodes to its NarHash,
// apart from a gzip nar in the signed part of greet.
func wantDecoded(t *testing.T, address string, texts map[string]string) {
	t.Helper()
	nars := 0
	for name, text := range texts {
		got := get(t, address, "/"+name)
		if want := withoutGzip(t, name, text); got.body != want {
			t.Errorf("%s: %s, %s", name, got.Status, got.body)
			continue
		}
		n, err := narinfo.Parse([]byte(got.body))
		noError(t, err)
		for _, file := range n.Files {
			nar := get(t, address, "/"+file.URL)
			if file.Compression == "gzip" && name == narinfoName(greet) {
				if nar.StatusCode != 404 {
					t.Errorf("%s: %s", file.URL, nar.Status)
				}
				continue
			}
			if nar.StatusCode != 200 {
				t.Errorf("%s: %s", file.URL, nar.Status)
				continue
			}
			args := decompressors[file.Compression]
			checkDecompressed(t, file.URL, n, nar.body, required(t, args[0]), args[1:]...)
			nars++
		}
	}
	if nars != 2*len(texts)-1 { // one has only gzip
		t.Errorf("%d nars are served", nars)
	}
}

// TestDroppedFarmMirrored: a farm deleted gzip nars, and is imported without them; it drops the
// others; mirrors from before and after that, and a mirror of a mirror, lack nothing.
func TestDroppedFarmMirrored(t *testing.T) {
	t.Parallel()
	dir, texts := gzipFarm(t)
	for name := range texts {
		if name != narinfoName(libgreet) && name != narinfoName(deepTree) && name != narinfoName(empty) {
			names, err := filepath.Glob(filepath.Join(dir, "nar/gzip", name[:32]+"-*"))
			if err != nil || len(names) != 1 {
				t.Fatal(names, err)
			}
			noError(t, os.Remove(names[0]))
		}
	}
	const missing, stored = 5, 15
	p := newPlace(t)
	source := p.serve(t)
	mirrors := []place{newPlace(t), newPlace(t), newPlace(t), newPlace(t)}
	servers := make([]*server, len(mirrors))
	mirror := func(n int, of *server) {
		t.Helper()
		servers[n] = mirrors[n].serve(t, "--mirror=http://"+of.addresses[0], "--database-dump-interval=none")
	}
	p.makeDump(t)
	mirror(0, source)
	if r := runProgram(t, p.args("import", "--keep", dir)...); r.status != 1 || !strings.HasPrefix(r.out, "5 failed, 3 added") {
		t.Errorf("import: status %d, %s", r.status, r.out)
	}
	if out := succeed(t, p.args("import", "--keep", "--allow-missing-files", dir)...); !strings.HasPrefix(out, "5 added, 3 known") || !strings.Contains(out, "\n5 nars missing, and recorded as dropped") {
		t.Errorf("import: %s", out)
	}
	wantMirrored(t, servers[0], stored+2)
	p.makeDump(t)
	mirror(1, source)
	wantMirrored(t, servers[1], stored+2)
	if out := succeed(t, p.args("drop-files", "--compression=gzip", "--all")...); !strings.HasPrefix(out, "2 items lost") {
		t.Errorf("drop-files: %s", out)
	}
	p.endGraceOfDropped(t)
	until(t, "the files are deleted at the source", func() bool { return len(p.nars(t, "gzip")) == 1 })
	p.makeDump(t)
	mirror(2, source)
	wantMirrored(t, servers[2], stored)
	mirrors[2].makeDump(t)
	mirror(3, servers[2])
	for n, m := range mirrors {
		until(t, "the mirror follows", func() bool {
			return !strings.Contains(get(t, servers[n].addresses[0], "/"+narinfoName(deepTree)).body, "gzip")
		})
		m.endGraceOfDropped(t)
		until(t, "the files are deleted at the mirror", func() bool { return slices.Equal(m.nars(t, "gzip"), []string{libgreet}) })
	}
	for _, restarted := range []bool{false, true} {
		for n, m := range mirrors {
			if restarted {
				servers[n].stop(t, os.Interrupt)
				of := source
				if n == 3 {
					of = servers[2]
				}
				mirror(n, of)
			}
			wantMirrored(t, servers[n], stored)
			wantDecoded(t, servers[n].addresses[0], texts)
			if got := get(t, servers[n].addresses[0], "/health"); got.StatusCode != 200 || !strings.Contains(got.body, `"status":"ok"`) {
				t.Errorf("mirror %d: %s: %s", n, got.Status, got.body)
			}
			if c := m.check(t, "--verify"); len(c.findings) > 0 {
				t.Errorf("mirror %d: %+v", n, c.findings)
			}
		}
	}
	wantDecoded(t, source.addresses[0], texts)
	succeed(t, p.args("check", "--verify")...)
}
