package main

import (
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"nar-herder/internal/mirrortest"
	"nar-herder/narinfo"
)

// TestImportWrongNar: a nar with one flipped byte is refused, wherever it was found, and
// nothing of it is served.
func TestImportWrongNar(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		options []string
		inPlace bool // the nars are in the storage already
	}{
		"moved":                  {},
		"copied":                 {options: []string{"--keep"}},
		"already in the storage": {inPlace: true},
		"with references":        {options: []string{"--ensure-references-exist", "--keep"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPlace(t)
			s := p.serve(t)
			source := copyCorpus(t, "published")
			wrong := filepath.Join(source, "nar/lzip", entropy)
			if test.inPlace {
				if err := os.Rename(filepath.Join(source, "nar"), filepath.Join(p.storage, "nar")); err != nil {
					t.Fatal(err)
				}
				wrong = filepath.Join(p.storage, "nar/lzip", entropy)
			}
			if err := flip(wrong); err != nil {
				t.Fatal(err)
			}
			content := read(t, wrong)
			r := runProgram(t, p.args("import", append(test.options, source)...)...)
			if r.status != 1 || !strings.HasPrefix(r.out, "1 failed, 12 added") || strings.Count(r.err, "\n") != 1 || !strings.Contains(r.err, entropy) || !strings.Contains(r.err, "not the nar that the narinfo describes") {
				t.Errorf("status %d, %s, %s", r.status, r.out, r.err)
			}
			if read(t, wrong) != content {
				t.Error("the wrong nar was changed or removed")
			}
			for _, path := range []string{"/" + narinfoName(entropy), "/nar/lzip/" + entropy, "/nar/" + entropy} {
				if got := get(t, s.addresses[0], path); got.StatusCode != 404 {
					t.Errorf("%s: %s", path, got.Status)
				}
			}
			if c := p.check(t, "--verify"); c.totals.Findings["corrupt"] != 0 || c.totals.VerifiedFiles != 12 {
				t.Errorf("check: %+v", c.totals)
			}
		})
	}
}

// TestImportUnverified: nars that this program can't decompress are refused, in bounded memory,
// and accepted with --no-verify.
func TestImportUnverified(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	source := t.TempDir()
	nar := "a nar"
	// A frame with a window of 1 GiB and one raw block.
	content := "\x28\xb5\x2f\xfd\x00\xa0" + string([]byte{byte(len(nar)<<3 | 1), 0, 0}) + nar
	const base = "00000000000000000000000000000001-large-window"
	write := func(name, text string) {
		t.Helper()
		name = filepath.Join(source, name)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("nar/zstd/"+base, content)
	write(narinfoName(base), string(mirrortest.Sign(fmt.Appendf(nil, "StorePath: /gnu/store/%s\nNarHash: %s\nNarSize: %d\nReferences: \nURL: nar/zstd/%s\nCompression: zstd\nFileSize: %d\n",
		base, narinfo.NarHash(sha256.Sum256([]byte(nar))), len(nar), base, len(content)))))
	r := runProgram(t, p.args("import", source)...)
	if r.status != 1 || !strings.HasPrefix(r.out, "1 failed") || !strings.Contains(r.err, "use --no-verify if it is right nevertheless") {
		t.Errorf("status %d, %s, %s", r.status, r.out, r.err)
	}
	if out := succeed(t, p.args("import", "--no-verify", source)...); !strings.HasPrefix(out, "1 added") || !strings.HasSuffix(out, "\n1 nar not verified; next: nar-herder check --verify\n") {
		t.Errorf("import --no-verify: %s", out)
	}
	p.imports(t, published(greeting))
	if out := succeed(t, "stats", "--database="+p.database); !strings.Contains(out, "  never verified 1 item; the others since ") {
		t.Errorf("stats: %s", out)
	}
	if out := succeed(t, "list", "--database="+p.database, "--json"); strings.Count(out, `"verified_at":`) != 1 {
		t.Errorf("list --json: %s", out)
	}
	// It still can't be verified, and stays unverified.
	if c := p.check(t, "--verify"); c.status != 2 || c.totals.Unknown != 1 {
		t.Errorf("check: status %d, %+v", c.status, c.totals)
	}
	if out := succeed(t, "stats", "--database="+p.database); !strings.Contains(out, "never verified 1 item;") {
		t.Errorf("stats after a check: %s", out)
	}
}
