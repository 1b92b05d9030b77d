package main

import (
	"encoding/hex"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
)

// newKey makes a pair of keys, and returns the names of the files.
func newKey(t testing.TB) (private, public string) {
	t.Helper()
	private = filepath.Join(t.TempDir(), "signing-key.sec")
	succeed(t, "keygen", private)
	return private, strings.TrimSuffix(private, ".sec") + ".pub"
}

var privateNumber = regexp.MustCompile(`\(d #([0-9A-F]+)#\)`)

// secretOf returns the secret number of a private key.
func secretOf(t testing.TB, private string) string {
	t.Helper()
	match := privateNumber.FindStringSubmatch(read(t, private))
	if match == nil {
		t.Fatal("the private key has no secret number")
	}
	return match[1]
}

func TestKeygen(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for _, test := range []struct{ private, public, named string }{
		{"a.sec", "a.pub", ""},
		{"b", "b.pub", ""},
		{"c.sec", "elsewhere", "elsewhere"},
	} {
		private, public := filepath.Join(dir, test.private), filepath.Join(dir, test.public)
		args := []string{"keygen", private}
		if test.named != "" {
			args = append(args, public)
		}
		out := succeed(t, args...)
		for name, mode := range map[string]fs.FileMode{private: 0o600, public: 0o644} {
			if info, err := os.Stat(name); err != nil || info.Mode() != mode {
				t.Errorf("%s: %v, %v", name, info.Mode(), err)
			}
			if !strings.Contains(out, name) {
				t.Errorf("%s isn't named: %s", name, out)
			}
		}
		if text := read(t, public); !strings.HasPrefix(text, "(public-key") || strings.Contains(text, secretOf(t, private)) {
			t.Errorf("the public key is %s", text)
		}
		if strings.Contains(out, secretOf(t, private)) || !strings.Contains(out, "guix archive --authorize") {
			t.Errorf("the output is %s", out)
		}
		before := read(t, private) + read(t, public)
		fail(t, args, "exists", "no key was written")
		if read(t, private)+read(t, public) != before {
			t.Error("keys were overwritten")
		}
	}
	if read(t, dir, "a.sec") == read(t, dir, "b") {
		t.Error("two keys are the same")
	}
}

// TestKeygenFaults: without both files, no key is written.
func TestKeygenFaults(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		prepare func(dir string) error
		args    []string
		wanted  []string
	}{
		"missing directory":        {nil, []string{"none/key.sec"}, []string{"none/key.sec", "no such file or directory"}},
		"public file exists":       {func(dir string) error { return os.WriteFile(dir+"/key.pub", []byte("x"), 0o644) }, []string{"key.sec"}, []string{"key.pub exists"}},
		"public directory missing": {nil, []string{"key.sec", "none/key.pub"}, []string{"none/key.pub", "no such file or directory"}},
		"the same file":            {nil, []string{"key", "key"}, []string{"different files"}},
		"dangling link":            {func(dir string) error { return os.Symlink("elsewhere", dir+"/key.sec") }, []string{"key.sec"}, []string{"key.sec exists"}},
		"a directory":              {func(dir string) error { return os.Mkdir(dir+"/key.sec", 0o755) }, []string{"key.sec"}, []string{"key.sec exists"}},
		"a file for a directory":   {func(dir string) error { return os.WriteFile(dir+"/file", nil, 0o644) }, []string{"file/key.sec"}, []string{"not a directory"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			if test.prepare != nil {
				if err := test.prepare(dir); err != nil {
					t.Fatal(err)
				}
			}
			before := tree(t, dir)
			args := []string{"keygen"}
			for _, name := range test.args {
				args = append(args, filepath.Join(dir, name))
			}
			fail(t, args, append(test.wanted, "no key was written")...)
			if after := tree(t, dir); after != before {
				t.Errorf("%s left: %s", name, after)
			}
		})
	}
	misuse(t, []string{"keygen", ""}, "empty")
	misuse(t, []string{"keygen", "key.pub", "key.sec"}, "named like a public key")
}

// TestKeygenUmask: the modes don't depend on the umask.
func TestKeygenUmask(t *testing.T) {
	t.Parallel()
	for _, umask := range []string{"000", "077", "777"} {
		dir := t.TempDir()
		p := command()
		p.Path, p.Args = "/bin/sh", []string{"sh", "-c", "umask " + umask + "; exec " + binary + " keygen " + dir + "/key.sec"}
		if r := p.run(t); r.status != 0 {
			t.Fatalf("umask %s: %+v", umask, r)
		}
		for name, want := range map[string]fs.FileMode{"key.sec": 0o600, "key.pub": 0o644} {
			if info, err := os.Stat(filepath.Join(dir, name)); err != nil || info.Mode() != want {
				t.Errorf("umask %s: %s has %v, %v", umask, name, info.Mode(), err)
			}
		}
	}
}

// TestKeygenFull: on a full disk, no half key is left.
func TestKeygenFull(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	p := command()
	// The limit of a file's size stands for a full disk. dash counts blocks of 512 bytes.
	p.Path, p.Args = "/bin/sh", []string{"sh", "-c", "trap '' XFSZ; ulimit -f 0; exec " + binary + " keygen " + dir + "/key.sec"}
	r := p.run(t)
	if r.status != 1 || !strings.Contains(r.err, "no key was written") || !strings.Contains(r.err, syscall.EFBIG.Error()) {
		t.Errorf("%+v", r)
	}
	if entries, err := os.ReadDir(dir); len(entries) > 0 || err != nil {
		t.Errorf("left: %v, %v", entries, err)
	}
}

// TestKeyRefused: keys that others can read, and files that are not keys, are refused without
// quoting them.
func TestKeyRefused(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	p.imports(t, published(greeting))
	before := p.dump(t)
	private, public := newKey(t)
	secret := secretOf(t, private)
	dir := t.TempDir()
	write := func(name, text string, mode fs.FileMode) string {
		name = filepath.Join(dir, name)
		if err := errors.Join(os.WriteFile(name, []byte(text), mode), os.Chmod(name, mode)); err != nil {
			t.Fatal(err)
		}
		return name
	}
	text := read(t, private)
	if err := syscall.Mkfifo(filepath.Join(dir, "pipe"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		file   string
		wanted string
	}{
		"group": {write("group", text, 0o640), "chmod 600"}, "others": {write("others", text, 0o604), "chmod 600"},
		"writable": {write("writable", text, 0o620), "chmod 600"},
		"missing":  {filepath.Join(dir, "none"), "no such file"}, "directory": {dir, "regular file"}, "pipe": {filepath.Join(dir, "pipe"), "regular file"},
		"empty": {write("empty", "", 0o600), "empty"}, "truncated": {write("truncated", text[:len(text)-40], 0o600), "cut off"},
		"public": {write("public", read(t, public), 0o600), "public key"}, "text": {write("text", "password="+secret, 0o600), ""},
		"huge": {write("huge", text+strings.Repeat(" ", 1<<20), 0o600), "bytes"}, "deep": {write("deep", strings.Repeat("(", 2000), 0o600), "levels"},
		"d of another key": {write("other", strings.Replace(text, secret, "0"+secret[1:], 1), 0o600), "belong together"},
	} {
		for _, args := range [][]string{
			{"sign", "--database=" + p.database, "--key=" + test.file, "--all", "--replace"},
			p.args("import", "--keep", "--sign-with="+test.file, published(greeting)),
		} {
			r := runProgram(t, args...)
			if r.status != 1 || r.out != "" || strings.Count(r.err, "\n") != 1 || !strings.Contains(r.err, test.wanted) || !strings.Contains(r.err, test.file) {
				t.Errorf("%s: %s: %+v", name, args[0], r)
			}
			if strings.Contains(r.err, secret[8:24]) {
				t.Errorf("%s: the key is quoted: %s", name, r.err)
			}
		}
	}
	// A key in place of the file's name.
	for _, args := range [][]string{
		{"sign", "--database=" + p.database, "--key=" + text, "--all"}, p.args("import", "--sign-with="+text, published(greeting)),
	} {
		r := runProgram(t, args...)
		if r.status != statusUsage || strings.Contains(r.err, secret) || !strings.Contains(r.err, "not the key itself") {
			t.Errorf("%+v", r)
		}
	}
	if p.dump(t) != before {
		t.Error("the instance has changed")
	}
}

// TestKeySecret: nothing that the commands write or print has the private key in it.
func TestKeySecret(t *testing.T) {
	t.Parallel()
	private, public := newKey(t)
	secret := secretOf(t, private)
	raw, err := hex.DecodeString(secret)
	if err != nil {
		t.Fatal(err)
	}
	p := newPlace(t)
	dir := publishUnsigned(t)
	s := p.serveProcess(t, "--signing-key="+public, "--log-level=DEBUG")
	for _, args := range [][]string{
		p.args("import", "--keep", "--sign-with="+private, dir),
		{"sign", "--database=" + p.database, "--key=" + private, "--all"},
		{"sign", "--key=" + private, dir},
		p.args("verify", "--json", "--authorized-key="+public, greeting),
		{"dump", "--database=" + p.database, "--database-dump=" + p.dumpFile()},
		p.args("config"),
	} {
		r := runProgram(t, args...)
		if r.status != 0 && args[0] != "config" || strings.Contains(r.out+r.err, secret) {
			t.Errorf("%q: %+v", args, r)
		}
	}
	s.stop(t, os.Interrupt)
	for _, below := range []string{p.dir, dir} {
		err := filepath.WalkDir(below, func(name string, entry fs.DirEntry, err error) error {
			if err == nil && entry.Type().IsRegular() {
				if text := read(t, name); strings.Contains(text, secret) || strings.Contains(text, string(raw)) {
					t.Errorf("%s has the private key", name)
				}
			}
			return err
		})
		if err != nil {
			t.Error(err)
		}
	}
	if strings.Contains(s.out.String()+s.err.String(), secret) {
		t.Error("the log has the private key")
	}
}
