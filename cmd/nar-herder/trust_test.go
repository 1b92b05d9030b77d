package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"nar-herder/internal/originalstub"
	"nar-herder/narinfo"
	"nar-herder/narinfo/signing"
	"nar-herder/storage"
	"nar-herder/storage/index"
)

// caseKeys returns the path of a file with keys of the test cases.
func caseKeys(name string) string { return filepath.Join(testdata, "cases/keys", name) }

// publicKey returns a key of the test cases as it is served.
func publicKey(t testing.TB, name string) string {
	t.Helper()
	return must(signing.ParseKeys([]byte(read(t, caseKeys(name))))).All()[0]
}

// putItems writes narinfos into an index, without any check of signatures.
func putItems(t testing.TB, database string, texts ...[]byte) {
	t.Helper()
	x, err := index.Open(t.Context(), database, index.Options{})
	if err != nil {
		t.Fatal(err)
	}
	err = x.Update(t.Context(), func(tx *index.Tx) error {
		for _, text := range texts {
			n, err := narinfo.Parse(text)
			if err != nil {
				return err
			}
			entry := x.Prepare(n)
			entry.AddedAt = time.Now()
			if err := tx.Put(entry, nil); err != nil {
				return err
			}
		}
		return nil
	})
	if err := errors.Join(err, x.Close()); err != nil {
		t.Fatal(err)
	}
}

// verdicts are the signed test cases, with part of the reason why a bad one is refused.
var verdicts = map[string]struct {
	reason storage.RefusalReason
	says   string
}{
	"bad-base64":                       {storage.BadSignature, "base64"},
	"bad-sexp":                         {storage.BadSignature, "s-expression"},
	"bad-signature-of-other-text":      {storage.BadSignature, "the sha256 of the text above it is"},
	"bad-signed-part-lacks-references": {storage.BadSignature, "References isn't signed"},
	"bad-tampered-narhash":             {storage.BadSignature, "the sha256 of the text above it is"},
	"bad-tampered-reference":           {storage.BadSignature, "the sha256 of the text above it is"},
	"bad-unauthorized-key":             {storage.Unauthorized, "unauthorized key"},
	"bad-unsigned":                     {storage.Unsigned, "no signature"},
	"bad-version-2":                    {storage.BadSignature, "version"},
}

// TestVerdicts: import, mirrors and check agree about each signed test case with Guix.
func TestVerdicts(t *testing.T) {
	t.Parallel()
	files := append(must(filepath.Glob(filepath.Join(testdata, "cases/*.narinfo"))), must(filepath.Glob(filepath.Join(testdata, "production/*.narinfo")))...)
	if len(files) < 19 {
		t.Fatalf("only %d cases", len(files))
	}
	for _, file := range files {
		name := strings.TrimSuffix(filepath.Base(file), ".narinfo")
		options := []string{"--acl=" + caseKeys("acl")}
		if !strings.Contains(file, "cases") {
			options = []string{
				"--authorized-key=" + filepath.Join(testdata, "production/ci.guix.gnu.org.pub"),
				"--authorized-key=" + filepath.Join(testdata, "production/bordeaux.guix.gnu.org.pub"),
			}
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			want, isBad := verdicts[name]
			if isBad != strings.HasPrefix(name, "bad-") {
				t.Fatal("no verdict is known")
			}
			text := []byte(read(t, file))
			o := &verdict{t: t, options: options, text: text, hash: must(narinfo.Parse(text)).StorePath.Hash.String(), reason: want.reason, says: want.says}
			o.library()
			o.imports()
			o.checks()
			o.mirrors()
		})
	}
}

// mirrors starts a mirror without a storage, and waits until it follows the source.
func (p place) mirrors(t testing.TB, source string, options ...string) *server {
	t.Helper()
	args := []string{"run-server", "--port=0", "--database=" + p.database, "--database-dump=" + p.dumpFile(), "--mirror=" + source, "--mirror-interval=1s", "--log-level=INFO"}
	s := serve(t, within(append(args, options...)...))
	until(t, "the mirror to follow", func() bool {
		return strings.Contains(get(t, s.addresses[0], "/health").body, `"state":"following"`)
	})
	return s
}

// has reports whether a server has a narinfo.
func (s *server) has(t testing.TB, text []byte) bool {
	t.Helper()
	got := get(t, s.addresses[0], "/"+must(narinfo.Parse(text)).StorePath.Hash.String()+".narinfo")
	return got.StatusCode == 200 && got.body == string(text)
}

// refusals returns the narinfos that a mirror has refused for a reason.
func (s *server) refusals(t testing.TB, reason storage.RefusalReason) float64 {
	t.Helper()
	return metricWith(t, s.addresses[0], fmt.Sprintf("narherder_mirror_refused_narinfos_total{reason=%q}", reason.Label()))
}

// verdict is one signed test case. reason is "" if it is good.
type verdict struct {
	t       *testing.T
	options []string
	text    []byte
	hash    string
	reason  storage.RefusalReason
	says    string
}

func (v *verdict) library() {
	v.t.Helper()
	keys := must((&keyOptions{ACL: v.all("acl"), AuthorizedKey: v.all("authorized-key")}).keys())
	n := must(narinfo.Parse(v.text))
	err := storage.Authorize(n, keys)
	if storage.Reason(err) != v.reason || v.reason != "" && !strings.Contains(err.Error(), v.says) {
		v.t.Errorf("verdict %q, want %q with %q: %v", storage.Reason(err), v.reason, v.says, err)
	}
	if checked := n.CheckSignature(keys); (checked == nil) != (err == nil) {
		v.t.Errorf("CheckSignature: %v", checked)
	}
}

func (v *verdict) all(option string) (values []string) {
	for _, text := range v.options {
		if value, ok := strings.CutPrefix(text, "--"+option+"="); ok {
			values = append(values, value)
		}
	}
	return values
}

func (v *verdict) imports() {
	v.t.Helper()
	p := newPlace(v.t)
	file := filepath.Join(p.dir, "x.narinfo")
	if err := os.WriteFile(file, v.text, 0o644); err != nil {
		v.t.Fatal(err)
	}
	r := runProgram(v.t, append([]string{"import", "--narinfos-only", "--database=" + p.database, file}, v.options...)...)
	want := 0
	if v.reason != "" {
		want = 1
	}
	if r.status != want || want == 1 && (!strings.Contains(r.err, v.says) || !strings.Contains(r.err, file)) {
		v.t.Errorf("import: status %d, want %d with %q: %s%s", r.status, want, v.says, r.out, r.err)
	}
	if listed := runProgram(v.t, "list", "--database="+p.database).out; strings.Contains(listed, v.hash) != (v.reason == "") {
		v.t.Errorf("import: the index has %q", listed)
	}
}

func (v *verdict) checks() {
	v.t.Helper()
	p := newPlace(v.t)
	putItems(v.t, p.database, v.text)
	c := readChecked(v.t, runProgram(v.t, append([]string{"check", "--json", "--no-closures", "--database=" + p.database}, v.options...)...))
	found := ""
	for _, finding := range c.findings {
		if finding.Kind != "unstored" {
			found += finding.Kind
			if !strings.Contains(finding.Note, v.says) {
				v.t.Errorf("check: %q, want %q", finding.Note, v.says)
			}
		}
	}
	if found != string(v.reason) || v.reason != "" && c.status != 1 {
		v.t.Errorf("check: status %d, found %q, want %q", c.status, found, v.reason)
	}
}

// mirrors starts a mirror with the narinfo in the source's dump, and one that gets it as a
// change.
func (v *verdict) mirrors() {
	v.t.Helper()
	other := []byte(read(v.t, testdata, "cases/ok-url-before-signature.narinfo"))
	first := []byte(read(v.t, published(emptyFile)))
	if v.hash == must(narinfo.Parse(other)).StorePath.Hash.String() {
		other = []byte(read(v.t, published(greeting)))
	}
	for _, byChange := range []bool{false, true} {
		source := originalstub.New(nil)
		v.t.Cleanup(source.Close)
		dumped := v.text
		if byChange {
			dumped = first
		}
		if err := errors.Join(source.Add(dumped), source.MakeDump(v.t.TempDir())); err != nil {
			v.t.Fatal(err)
		}
		p := newPlace(v.t)
		// The last key is that of the other item.
		s := p.mirrors(v.t, source.URL, append(v.options, "--authorized-key="+caseKeys("main.pub"))...)
		if byChange {
			if err := source.Add(v.text); err != nil {
				v.t.Fatal(err)
			}
		}
		// The mirror follows what comes after.
		if err := source.Add(other); err != nil {
			v.t.Fatal(err)
		}
		until(v.t, "the next change to be followed", func() bool { return s.has(v.t, other) })
		got := get(v.t, s.addresses[0], "/"+v.hash+".narinfo")
		if v.reason == "" {
			if got.body != string(v.text) {
				v.t.Errorf("mirror, by a change: %v: %s %q", byChange, got.Status, got.body)
			}
			continue
		}
		if got.StatusCode != 404 {
			v.t.Errorf("mirror, by a change: %v: %s %q", byChange, got.Status, got.body)
		}
		if count := s.refusals(v.t, v.reason); count != 1 {
			v.t.Errorf("by a change: %v: %v narinfos were refused as %s", byChange, count, v.reason)
		}
		until(v.t, "the health to warn", func() bool {
			return strings.Contains(get(v.t, s.addresses[0], "/health").body, "refused because of their signatures (1 "+string(v.reason)+")")
		})
		if log := s.err.String(); !strings.Contains(log, v.says) {
			v.t.Errorf("by a change: %v: the log has no %q: %s", byChange, v.says, log)
		}
	}
}

// TestWithoutKeys: without keys, import accepts narinfos without a signature, with a warning,
// and check finds signatures that don't match.
func TestWithoutKeys(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	r := runProgram(t, "import", "--narinfos-only", "--database="+p.database, filepath.Join(testdata, "cases/bad-unsigned.narinfo"), published(greeting))
	if r.status != 0 || !strings.Contains(r.err, "warning: 1 narinfo imported without a signature") {
		t.Errorf("status %d: %s%s", r.status, r.out, r.err)
	}
	r = runProgram(t, "import", "--narinfos-only", "--database="+p.database, filepath.Join(testdata, "cases/bad-tampered-narhash.narinfo"))
	if r.status != 1 || !strings.Contains(r.err, "the sha256 of the text above it is") {
		t.Errorf("status %d: %s%s", r.status, r.out, r.err)
	}
	q := newPlace(t)
	putItems(t, q.database, []byte(read(t, testdata, "cases/bad-tampered-narhash.narinfo")), []byte(read(t, published(greeting))))
	r = runProgram(t, "check", "--no-closures", "--database="+q.database)
	if r.status != 1 || !strings.Contains(r.out, "bad signature: /gnu/store/nxrz38jzshzw0q3fqi3fqimjg1zr62r9-greet-1.0: ") || !strings.Contains(r.out, "next: ") {
		t.Errorf("status %d: %s%s", r.status, r.out, r.err)
	}
	if strings.Contains(r.out, "signature: /gnu/store/"+greeting) {
		t.Errorf("a good one is reported: %s", r.out)
	}
}

// TestKeyFiles: files that are not keys are refused before anything is started.
func TestKeyFiles(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	acl := read(t, caseKeys("acl"))
	file := func(name, text string) string {
		name = filepath.Join(dir, name)
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		return name
	}
	private := "(key-data\n (public-key (ecc (curve Ed25519) (q #00#)))\n (private-key (ecc (curve Ed25519) (q #00#) (d #5EC5E7#))))\n"
	for _, test := range []struct {
		name, says string
		status     int
	}{
		{file("empty", ""), "the file is empty", 1},
		{file("truncated", acl[:len(acl)/2]), "", statusUsage},
		{file("private", private), "private key", statusUsage},
		{file("foreign", "root:x:0:0:root:/root:/bin/bash\n"), "", statusUsage},
		{file("large", "(acl"+strings.Repeat(" ", signing.MaxKeysSize)+")"), "over 1.0 MiB", 1},
		{file("nested", strings.Repeat("(", 100_000)), "", statusUsage},
		{file("none", "(acl)\n"), "no key", statusUsage},
		{filepath.Join(dir, "missing"), "no such file", 1},
		{dir, "not a regular file", 1},
	} {
		for _, option := range []string{"acl", "authorized-key", "mirror-key", "signing-key"} {
			given := "--" + option + "=" + test.name
			for _, args := range [][]string{
				{"run-server", "--port=0", "--storage=" + dir + "/storage", "--database=" + dir + "/index.db", "--pid-file=" + dir + "/pid", given},
				{"import", "--narinfos-only", "--database=" + dir + "/index.db", given, published(greeting)},
				{"check", "--database=" + dir + "/index.db", given},
			} {
				if args[0] != "run-server" && (option == "mirror-key" || option == "signing-key") {
					continue
				}
				status := test.status
				if args[0] == "check" && status == 1 {
					status = int(statusUnknown)
				}
				r := runProgram(t, args...)
				if r.status != status {
					t.Errorf("%q: status %d, want %d: %s%s", args, r.status, status, r.out, r.err)
				}
				for _, says := range []string{given, test.says, "name a file that begins with"} {
					if !strings.Contains(r.err, says) {
						t.Errorf("%q: %s does not say %q", args, r.err, says)
					}
				}
				if strings.Contains(r.err, "5EC5E7") || len(r.err) > 1000 {
					t.Errorf("%q: %s", args, r.err)
				}
			}
		}
	}
	for _, name := range []string{"storage", "index.db", "pid"} {
		if _, err := os.Stat(filepath.Join(dir, name)); err == nil {
			t.Errorf("%s was made", name)
		}
	}
}

// TestExtendedKeys: a mirror with other keys than before gets what it refused, by itself.
func TestExtendedKeys(t *testing.T) {
	t.Parallel()
	source := originalstub.New(nil)
	t.Cleanup(source.Close)
	refused := []byte(read(t, testdata, "cases/bad-unauthorized-key.narinfo"))
	later := []byte(read(t, testdata, "production/bayfront-hello-2.12.2.narinfo"))
	if err := errors.Join(source.Add([]byte(read(t, published(greeting)))), source.Add(refused), source.MakeDump(t.TempDir())); err != nil {
		t.Fatal(err)
	}
	p := newPlace(t)
	acl := "--acl=" + caseKeys("acl")
	s := p.mirrors(t, source.URL, acl)
	if err := source.Add(later); err != nil {
		t.Fatal(err)
	}
	until(t, "both to be refused", func() bool { return s.refusals(t, storage.Unauthorized) == 2 })
	if s.has(t, refused) || s.has(t, later) {
		t.Error("a narinfo was accepted")
	}
	if keys := metricWith(t, s.addresses[0], "narherder_authorized_keys"); keys != 2 {
		t.Errorf("%v keys", keys)
	}
	s.stop(t, os.Interrupt)
	s = p.mirrors(t, source.URL, acl) // the count is kept
	if count := s.refusals(t, storage.Unauthorized); count != 2 {
		t.Errorf("after a restart: %v were refused", count)
	}
	s.stop(t, os.Interrupt)
	s = p.mirrors(t, source.URL, acl, "--authorized-key="+caseKeys("other.pub"), "--authorized-key="+filepath.Join(testdata, "production/bordeaux.guix.gnu.org.pub"))
	until(t, "both to be accepted", func() bool { return s.has(t, refused) && s.has(t, later) })
	if count := s.refusals(t, storage.Unauthorized); count != 0 {
		t.Errorf("then: %v were refused", count)
	}
	if !bytes.Contains([]byte(s.err.String()), []byte("the authorized keys have changed")) {
		t.Errorf("the log: %s", s.err.String())
	}
}

// TestMirrorKey: what comes from the mirrored instance must be signed by its keys, and imports
// by the others.
func TestMirrorKey(t *testing.T) {
	t.Parallel()
	source := originalstub.New(nil)
	t.Cleanup(source.Close)
	unbound := []byte(read(t, testdata, "cases/ok-rsa.narinfo"))
	if err := errors.Join(source.Add([]byte(read(t, published(greeting)))), source.Add(unbound), source.MakeDump(t.TempDir())); err != nil {
		t.Fatal(err)
	}
	p := newPlace(t)
	s := p.mirrors(t, source.URL, "--acl="+caseKeys("acl"), "--mirror-key="+caseKeys("main.pub"))
	if got := get(t, s.addresses[0], "/"+narinfoName(greeting)); got.StatusCode != 200 {
		t.Errorf("signed by the mirror's key: %s", got.Status)
	}
	if s.has(t, unbound) || s.refusals(t, storage.Unauthorized) != 1 {
		t.Error("what another authorized key has signed is accepted")
	}
	succeed(t, "import", "--narinfos-only", "--database="+p.database, "--acl="+caseKeys("acl"), filepath.Join(testdata, "cases/ok-rsa.narinfo"))
}

// TestRepairKeys: the keys of the mirrored instance also bind what its narinfos repair here.
func TestRepairKeys(t *testing.T) {
	t.Parallel()
	only := serverKeyOptions{MirrorKey: []string{caseKeys("main.pub")}}
	keys, err := only.read()
	if err != nil || keys.authorized != nil || keys.all() == nil || keys.count() != 1 {
		t.Errorf("%+v, %v", keys, err)
	}
	if keys := new(serverKeys); keys.all() != nil || keys.count() != 0 {
		t.Errorf("%+v", keys)
	}
}

// TestMirrorsWithoutKeys: without keys, what comes from an original needs the signature of any
// key, in its dump and in its changes. An instance of this program is trusted.
func TestMirrorsWithoutKeys(t *testing.T) {
	t.Parallel()
	good, second := []byte(read(t, published(greeting))), []byte(read(t, published(emptyFile)))
	for name, reason := range map[string]storage.RefusalReason{"bad-unsigned": storage.Unsigned, "bad-tampered-narhash": storage.BadSignature, "bad-unauthorized-key": ""} {
		text := []byte(read(t, testdata, "cases", name+".narinfo"))
		for _, byChange := range []bool{false, true} {
			t.Run(fmt.Sprint(name, " by a change: ", byChange), func(t *testing.T) {
				t.Parallel()
				source := originalstub.New(nil)
				t.Cleanup(source.Close)
				texts := [][]byte{good, text}
				if byChange {
					texts = texts[:1]
				}
				for _, text := range texts {
					if err := source.Add(text); err != nil {
						t.Fatal(err)
					}
				}
				if err := source.MakeDump(t.TempDir()); err != nil {
					t.Fatal(err)
				}
				p := newPlace(t)
				s := p.mirrors(t, source.URL)
				if byChange {
					if err := source.Add(text); err != nil {
						t.Fatal(err)
					}
				}
				if err := source.Add(second); err != nil {
					t.Fatal(err)
				}
				until(t, "the last change", func() bool { return s.has(t, second) })
				if s.has(t, text) != (reason == "") || reason != "" && s.refusals(t, reason) != 1 {
					t.Errorf("%s: it is there: %v\n%s", name, s.has(t, text), s.err.String())
				}
			})
		}
	}
	t.Run("another instance", func(t *testing.T) {
		t.Parallel()
		p, q := newPlace(t), newPlace(t)
		text := []byte(read(t, testdata, "cases/bad-unsigned.narinfo"))
		putItems(t, p.database, good, text)
		source := p.serve(t)
		until(t, "a dump", func() bool { return get(t, source.addresses[0], "/latest-index-dump").StatusCode == 200 })
		s := q.mirrors(t, "http://"+source.addresses[0])
		if !s.has(t, text) {
			t.Error("an unsigned narinfo was refused")
		}
	})
}

// TestInstanceWithKeys: a mirror with keys refuses narinfos of an instance of this program, in
// its index and in the stream of its changes, and gets them with other keys.
func TestInstanceWithKeys(t *testing.T) {
	t.Parallel()
	p, q := newPlace(t), newPlace(t)
	good, second := []byte(read(t, published(greeting))), []byte(read(t, published(emptyFile)))
	first, later := []byte(read(t, testdata, "cases/bad-unauthorized-key.narinfo")), []byte(read(t, testdata, "production/bayfront-hello-2.12.2.narinfo"))
	putItems(t, p.database, good, first)
	source := p.serve(t)
	until(t, "a dump", func() bool { return get(t, source.addresses[0], "/latest-index-dump").StatusCode == 200 })
	key := "--authorized-key=" + caseKeys("main.pub")
	s := q.mirrors(t, "http://"+source.addresses[0], key)
	if !s.has(t, good) || s.has(t, first) || s.refusals(t, storage.Unauthorized) != 1 {
		t.Errorf("by the index: %s", s.err.String())
	}
	putItems(t, p.database, later, second)
	until(t, "the last change", func() bool { return s.has(t, second) })
	if s.has(t, later) || s.refusals(t, storage.Unauthorized) != 2 {
		t.Errorf("by the stream: %s", s.err.String())
	}
	s.stop(t, os.Interrupt)
	s = q.mirrors(t, "http://"+source.addresses[0], key, "--authorized-key="+caseKeys("other.pub"))
	until(t, "what was refused", func() bool { return s.has(t, first) })
	if s.has(t, later) || s.refusals(t, storage.Unauthorized) != 1 {
		t.Errorf("with another key: %v\n%s", s.refusals(t, storage.Unauthorized), s.err.String())
	}
	// Without the key again, the item stays.
	s.stop(t, os.Interrupt)
	s = q.mirrors(t, "http://"+source.addresses[0], key)
	until(t, "the dump to be merged", func() bool { return metricWith(t, s.addresses[0], "narherder_mirror_resyncs_total") == 1 })
	if !s.has(t, first) {
		t.Error("with fewer keys, an item was removed")
	}
}

// TestPublishedKeys: keys are served one by one, and a warning says that they have signed none of the
// items, or that no keys are authorized.
func TestPublishedKeys(t *testing.T) {
	t.Parallel()
	const warning, noKeys = "has signed none of the newest items", "no keys are authorized"
	for _, test := range []struct {
		keys   []string
		warned bool
	}{
		{[]string{"main.pub"}, false},
		{[]string{"rsa.pub", "main.pub"}, false},
		{[]string{"rsa.pub", "other.pub"}, true},
		{nil, false},
	} {
		p := newPlace(t)
		p.imports(t, published(greeting))
		var options []string
		for _, name := range test.keys {
			options = append(options, "--signing-key="+caseKeys(name))
		}
		s := p.serve(t, options...)
		for i, name := range []string{"/signing-key.pub", "/signing-key-2.pub", "/signing-key-3.pub"} {
			got := get(t, s.addresses[0], name)
			if i < len(test.keys) && got.body != publicKey(t, test.keys[i]) || i >= len(test.keys) && got.StatusCode != 404 {
				t.Errorf("%q: %s is %s %s", test.keys, name, got.Status, got.body)
			}
		}
		if log := s.err.String(); strings.Contains(log, warning) != test.warned || !strings.Contains(log, noKeys) {
			t.Errorf("%q: %s", test.keys, log)
		}
		if count := metricWith(t, s.addresses[0], "narherder_authorized_keys"); count != 0 {
			t.Errorf("%v authorized keys", count)
		}
	}
	misuse(t, []string{"run-server", "--port=0", "--storage=" + t.TempDir(), "--mirror-key=" + caseKeys("acl")}, "--mirror-key", "needs --mirror")
	misuse(t, []string{"run-server", "--port=0", "--storage=" + t.TempDir(), "--signing-key=" + caseKeys("acl")}, "--signing-key", "2 keys")
}
