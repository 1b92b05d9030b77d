package main

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"nar-herder/narinfo"
	"nar-herder/narinfo/signing"
	"nar-herder/storage/index"
)

// unsigned returns a narinfo without its signature.
func unsigned(text string) string {
	above, rest, _ := strings.Cut(text, "Signature: ")
	_, below, _ := strings.Cut(rest, "\n")
	return above + below
}

// publishUnsigned makes a directory with substitutes that are not signed.
func publishUnsigned(t testing.TB) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "published")
	if err := os.CopyFS(dir, os.DirFS(filepath.Join(testdata, "published"))); err != nil {
		t.Fatal(err)
	}
	for _, name := range must(filepath.Glob(filepath.Join(dir, "*.narinfo"))) {
		text := unsigned(read(t, name))
		if err := errors.Join(os.Chmod(name, 0o644), os.WriteFile(name, []byte(text), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// importsUnsigned is imports for items of which some have no signature: a warning counts them.
func (p place) importsUnsigned(t testing.TB, count int, names ...string) {
	t.Helper()
	importUnsigned(t, count, p.args("import", append([]string{"--keep"}, names...)...)...)
}

// importUnsigned is succeed for an import of which a warning counts the narinfos without a signature.
func importUnsigned(t testing.TB, count int, args ...string) string {
	t.Helper()
	r := runProgram(t, args...)
	if warning := "nar-herder: warning: " + countOf(count, "narinfo") + " imported without a signature: "; r.status != 0 || !strings.HasPrefix(r.err, warning) || strings.Count(r.err, "\n") != 1 {
		t.Fatalf("%s: status %d, stderr %s, want %s", args, r.status, r.err, warning)
	}
	return r.out
}

// wantSigned asserts that a client with the public key accepts a narinfo, which differs from the
// original in the signature only.
func wantSigned(t testing.TB, public, text, original string) {
	t.Helper()
	keys, err := signing.ParseKeys([]byte(read(t, public)))
	if err != nil {
		t.Fatal(err)
	}
	n, err := narinfo.Parse([]byte(text))
	if err == nil {
		err = n.CheckSignature(keys)
	}
	if err != nil {
		t.Errorf("%v: %s", err, text)
		return
	}
	if unsigned(text) != unsigned(original) {
		t.Errorf("more than the signature has changed: %q, was %q", text, original)
	}
}

// originals are the names and texts of the published narinfos.
func originals(t testing.TB) map[string]string {
	t.Helper()
	texts := make(map[string]string)
	for _, name := range must(filepath.Glob(filepath.Join(testdata, "published/*.narinfo"))) {
		texts[filepath.Base(name)] = read(t, name)
	}
	return texts
}

// TestSignImported imports unsigned nars, signs them, serves them, and verifies as a client does.
func TestSignImported(t *testing.T) {
	t.Parallel()
	private, public := newKey(t)
	for name, commands := range map[string]func(t *testing.T, p place, dir string){
		"import, then sign": func(t *testing.T, p place, dir string) {
			p.importsUnsigned(t, 13, dir)
			if out := succeed(t, "sign", "--database="+p.database, "--key="+private, "--all"); out != "13 narinfos signed\n  13 had no signature\n" {
				t.Errorf("%q", out)
			}
			if out := succeed(t, "sign", "--database="+p.database, "--key="+private, "--all"); out != "0 narinfos signed\n  13 have a signature by this key already\n" {
				t.Errorf("%q", out)
			}
		},
		"sign while importing": func(t *testing.T, p place, dir string) {
			succeed(t, p.args("import", "--keep", "--ensure-references-exist", "--sign-with="+private, "--sign-as=farm.example", dir)...)
			if out := succeed(t, p.args("import", "--keep", "--sign-with="+private, "--sign-as=farm.example", dir)...); !strings.HasPrefix(out, "13 known;") {
				t.Errorf("%q", out)
			}
		},
		"sign files": func(t *testing.T, p place, dir string) {
			succeed(t, "sign", "--key="+private, dir)
			p.imports(t, dir)
		},
		"sign beside a server": func(t *testing.T, p place, dir string) {
			p.importsUnsigned(t, 13, dir)
			s := p.serve(t, "--log-level=INFO")
			if got := get(t, s.addresses[0], "/"+narinfoName(greeting)); strings.Contains(got.body, "Signature") {
				t.Errorf("%s", got.body)
			}
			succeed(t, "sign", "--database="+p.database, "--key="+private, "--all")
			until(t, "the new signature is served", func() bool {
				return strings.Contains(get(t, s.addresses[0], "/"+narinfoName(greeting)).body, "Signature")
			})
			s.stop(t, os.Interrupt)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPlace(t)
			commands(t, p, publishUnsigned(t))
			s := p.serve(t, "--log-level=INFO")
			for name, original := range originals(t) {
				got := get(t, s.addresses[0], "/"+name)
				wantSigned(t, public, got.body, original)
				n, file := narOf(t, got.body)
				if nar := get(t, s.addresses[0], "/"+n.Files[0].URL); nar.StatusCode != 200 || nar.body != read(t, p.storage, file) {
					t.Errorf("%s: %s", name, nar.Status)
				}
			}
			if lines, status := verifyJSON(t, append(p.args("verify", "--authorized-key="+public)[1:], greeting, greet)...); status != 0 || len(lines) != 2 {
				t.Errorf("status %d, %+v", status, lines)
			}
			if lines, status := verifyJSON(t, append(p.args("verify", "--acl="+cases+"/keys/acl")[1:], greeting)...); status != 1 || *lines[greeting].Authorized {
				t.Errorf("by another key: status %d, %+v", status, lines)
			}
			if out := succeed(t, p.args("check", "--verify")...); !strings.Contains(out, "nothing is wrong") {
				t.Errorf("%s", out)
			}
		})
	}
}

// TestSignKeeps: import signs only unsigned narinfos.
func TestSignKeeps(t *testing.T) {
	t.Parallel()
	private, _ := newKey(t)
	p := newPlace(t)
	succeed(t, p.args("import", "--keep", "--sign-with="+private, published(greeting))...)
	s := p.serve(t)
	if got := get(t, s.addresses[0], "/"+narinfoName(greeting)); got.body != read(t, published(greeting)) {
		t.Errorf("%s", got.body)
	}
}

// verifiedAt returns when the index recorded the files of each item as verified.
func (p place) verifiedAt(t *testing.T) string {
	t.Helper()
	return shell(t, "sqlite3", "file:"+p.database+"?mode=ro", "SELECT key, stored_files, stored_size, verified_at, added_at, file_sizes FROM items ORDER BY key")
}

// TestSignReplace: valid signatures by other keys are replaced with --replace only, and what else
// the index has on an item stays.
func TestSignReplace(t *testing.T) {
	t.Parallel()
	required(t, "sqlite3")
	private, public := newKey(t)
	next, nextPublic := newKey(t)
	p := newPlace(t)
	p.imports(t, append([]string{"--tag=kind=good"}, small()...)...)
	succeed(t, p.args("check", "--verify")...)
	stored, before := p.verifiedAt(t), p.dump(t)
	sign := func(key string, more ...string) result {
		return runProgram(t, append([]string{"sign", "--database=" + p.database, "--key=" + key}, more...)...)
	}
	for _, args := range [][]string{{"--all"}, {"--all", "--dry-run"}, {"--tag=kind=good"}, {"--closure-of=" + greet}, {greeting}} {
		if r := sign(private, args...); r.status != 1 || r.err != "" || !strings.HasPrefix(r.out, "0 narinfos") || !strings.Contains(r.out, "not signed: they have a valid signature by vm, key Ed25519 D35EA6267670FF1C…: --replace replaces it") {
			t.Errorf("%q: %+v", args, r)
		}
	}
	if r := sign(private, "--all", "--replace", "--dry-run"); r.status != 0 || r.out != "5 narinfos would be signed\n  5 would lose the signature by vm, key Ed25519 D35EA6267670FF1C…\n" {
		t.Errorf("%+v", r)
	}
	if p.dump(t) != before {
		t.Error("the instance has changed")
	}

	if r := sign(private, "--closure-of="+greet, "--replace"); r.status != 0 || !strings.HasPrefix(r.out, "3 narinfos signed\n") {
		t.Errorf("%+v", r)
	}
	if r := sign(private, "--tag=kind=good", "--replace", "--sign-as=farm.example"); r.status != 0 || r.out != "5 narinfos signed\n  5 lost the signature by vm, key Ed25519 D35EA6267670FF1C…\n" &&
		!strings.HasSuffix(r.out, "  3 have a signature by this key already\n") {
		t.Errorf("%+v", r)
	}
	if p.verifiedAt(t) != stored {
		t.Errorf("the stored files were %s, are %s", stored, p.verifiedAt(t))
	}
	if out := succeed(t, "list", "--database="+p.database, "--tag=kind=good"); strings.Count(out, "\n") != 5 {
		t.Errorf("%s", out)
	}
	s := p.serve(t)
	for _, name := range small() {
		wantSigned(t, public, get(t, s.addresses[0], "/"+filepath.Base(name)).body, read(t, name))
	}
	// And to the next key, from a list.
	list := within("sign", "--database="+p.database, "--key="+next, "--replace", "-")
	list.stdin = succeed(t, "list", "--database="+p.database)
	if r := list.run(t); r.status != 0 || !strings.HasPrefix(r.out, "5 narinfos signed\n") {
		t.Errorf("%+v", r)
	}
	until(t, "the new signatures are served", func() bool {
		return strings.Contains(succeed(t, append(p.args("verify", "--authorized-key="+nextPublic), greet)...), ", authorized")
	})
	for _, name := range small() {
		until(t, "the next signature is served", func() bool {
			n, err := narinfo.Parse([]byte(get(t, s.addresses[0], "/"+filepath.Base(name)).body))
			key, keyErr := n.SigningKey()
			return err == nil && keyErr == nil && key == read(t, nextPublic)
		})
	}
}

// TestSignDoubtful: narinfos with signatures that are not valid are never signed.
func TestSignDoubtful(t *testing.T) {
	t.Parallel()
	private, public := newKey(t)
	dir := filepath.Join(t.TempDir(), "cases")
	if err := os.CopyFS(dir, os.DirFS(cases)); err != nil {
		t.Fatal(err)
	}
	names := must(filepath.Glob(filepath.Join(dir, "*.narinfo")))
	before := make(map[string]string)
	for _, name := range names {
		before[name] = read(t, name)
	}
	r := runProgram(t, "sign", "--key="+private, "--replace", dir)
	if r.status != 1 || strings.Count(r.err, "\n") != 7 || !strings.HasSuffix(r.out, "  7 failed\n") {
		t.Errorf("%+v", r)
	}
	signed := 0
	for _, name := range names {
		base := filepath.Base(name)
		if strings.HasPrefix(base, "ok-") || base == "bad-unauthorized-key.narinfo" {
			wantSigned(t, public, read(t, name), before[name])
			signed++
		} else if base == "bad-unsigned.narinfo" {
			if lines, status := verifyJSON(t, "--authorized-key="+public, name); status != 0 {
				t.Errorf("%+v", lines)
			}
		} else if read(t, name) != before[name] || !strings.Contains(r.err, base+": not signed") {
			t.Errorf("%s has changed, or is not reported", base)
		}
	}
	if signed != 9 {
		t.Errorf("%d are signed", signed)
	}
	for _, entry := range must(os.ReadDir(dir)) {
		if strings.HasPrefix(entry.Name(), ".") {
			t.Errorf("%s is left", entry.Name())
		}
	}

	// In the index.
	p := newPlace(t)
	p.imports(t, published(greeting), published(greet))
	x, err := index.Open(t.Context(), p.database, index.Options{})
	if err != nil {
		t.Fatal(err)
	}
	tampered := "# tampered\n" + read(t, published(greet))
	n, err := narinfo.Parse([]byte(tampered))
	if err != nil || n.CheckSignature(nil) == nil {
		t.Fatalf("%v: %s", err, tampered)
	}
	err = x.Update(t.Context(), func(tx *index.Tx) error {
		row, err := tx.Item(n.StorePath.Hash)
		if err != nil {
			return err
		}
		entry := x.Prepare(n)
		entry.Stored = row.Stored
		return tx.Put(entry, row)
	})
	if err := errors.Join(err, x.Close()); err != nil {
		t.Fatal(err)
	}
	r = runProgram(t, "sign", "--database="+p.database, "--key="+private, "--replace", "--all")
	if r.status != 1 || !strings.Contains(r.err, "/gnu/store/"+greet+": not signed") || !strings.Contains(r.err, "its text may be wrong") || !strings.HasPrefix(r.out, "1 narinfo signed\n") {
		t.Errorf("%+v", r)
	}
	if lines, status := verifyJSON(t, "--database="+p.database, greet); status != 1 || lines[greet].Verdict != verdictInvalid {
		t.Errorf("status %d, %+v", status, lines)
	}
}

// TestSignFiles: files are rewritten with their modes, or printed.
func TestSignFiles(t *testing.T) {
	t.Parallel()
	private, public := newKey(t)
	dir := publishUnsigned(t)
	name := filepath.Join(dir, narinfoName(greeting))
	before := read(t, name)
	out := succeed(t, "sign", "--key="+private, "--stdout", name)
	wantSigned(t, public, out, read(t, published(greeting)))
	if read(t, name) != before {
		t.Error("--stdout has changed the file")
	}
	misuse(t, []string{"sign", "--key=" + private, "--stdout", dir}, "single")
	fail(t, []string{"sign", "--key=" + private, "--stdout", published(greeting)}, "--replace", "vm")
	if out := succeed(t, "sign", "--key="+private, "--dry-run", dir); !strings.HasPrefix(out, "13 narinfos would be signed\n") || read(t, name) != before {
		t.Errorf("%s", out)
	}
	link := filepath.Join(dir, "0.narinfo")
	if err := errors.Join(os.Chmod(name, 0o640), os.Symlink(narinfoName(greet), link)); err != nil {
		t.Fatal(err)
	}
	r := runProgram(t, "sign", "--key="+private, "--sign-as=farm.example", dir)
	if r.status != 1 || !strings.Contains(r.err, "0.narinfo: it is a symbolic link") {
		t.Errorf("%+v", r)
	}
	if info, err := os.Lstat(link); err != nil || info.Mode()&fs.ModeSymlink == 0 {
		t.Errorf("the link was replaced: %v", err)
	}
	if info, err := os.Stat(name); err != nil || info.Mode() != 0o640 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	if text := read(t, name); text != strings.Replace(out, signerOf(t, out), "farm.example", 1) {
		wantSigned(t, public, text, read(t, published(greeting)))
		if signerOf(t, text) != "farm.example" {
			t.Errorf("%s", text)
		}
	}
	for _, host := range []string{"a;b", "a b", "ä", "a\nb"} {
		misuse(t, []string{"sign", "--key=" + private, "--sign-as=" + host, dir}, "--sign-as")
	}
	misuse(t, []string{"sign", "--key=" + private}, "--all")
	misuse(t, []string{"sign", "--key=" + private, "--all", dir}, "--all")
	misuse(t, []string{"sign", "--key=" + private, "/gnu/store/x"}, "not a store item")
	if r := runProgram(t, "sign", "--key="+private, "--database="+newPlace(t).database, "--all"); r.status != 1 || !strings.Contains(r.err, "index.db") {
		t.Errorf("no database: %+v", r)
	}
}

// storePathOf returns the store path of a narinfo.
func storePathOf(t testing.TB, text string) string {
	t.Helper()
	n, err := narinfo.Parse([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return n.StorePath.String()
}

// signerOf returns the name in a narinfo's signature.
func signerOf(t testing.TB, text string) string {
	t.Helper()
	_, rest, _ := strings.Cut(text, "Signature: 1;")
	name, _, _ := strings.Cut(rest, ";")
	return name
}

// TestUnsignedAgain: an unsigned narinfo doesn't replace a signed one.
func TestUnsignedAgain(t *testing.T) {
	t.Parallel()
	private, public := newKey(t)
	next, _ := newKey(t)
	p := newPlace(t)
	dir := publishUnsigned(t)
	p.importsUnsigned(t, 13, dir)
	succeed(t, "sign", "--database="+p.database, "--key="+private, "--all")
	before := p.dump(t)
	for _, args := range [][]string{nil, {"--sign-with=" + private, "--sign-as=other.example"}, {"--sign-with=" + next}} {
		if out := succeed(t, p.args("import", append(args, "--keep", dir)...)...); !strings.HasPrefix(out, "13 known;") {
			t.Errorf("%q: %s", args, out)
		}
	}
	if p.dump(t) != before {
		t.Error("the instance has changed")
	}
	// A missing nar is still added.
	if err := os.Remove(p.nar(greet)); err != nil {
		t.Fatal(err)
	}
	succeed(t, p.args("import", "--keep", dir)...)
	if lines, status := verifyJSON(t, append(p.args("verify", "--authorized-key="+public)[1:], greet)...); status != 0 || lines[greet].Nars[0].Verdict != verdictRight {
		t.Errorf("status %d, %+v", status, lines)
	}
	// Another text of the same nar.
	name := filepath.Join(dir, narinfoName(greeting))
	if err := os.WriteFile(name, []byte(strings.Replace(read(t, name), "References:", "# again\nReferences:", 1)), 0o644); err != nil {
		t.Fatal(err)
	}
	if out := succeed(t, p.args("import", "--keep", name)...); !strings.Contains(out, "kept: its narinfo is signed, and this one is not") {
		t.Errorf("%s", out)
	}
	if out := succeed(t, p.args("import", "--keep", "--sign-with="+private, name)...); !strings.Contains(out, "1 updated;") {
		t.Errorf("%s", out)
	}
	if out := succeed(t, p.args("import", "--keep", "--replace", name)...); !strings.Contains(out, "1 updated;") && !strings.Contains(out, "known") {
		t.Errorf("%s", out)
	}
}
