package main

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"nar-herder/narinfo"
)

const cases = testdata + "/cases"

// verifyJSON runs verify with --json, and returns its results by the base names of files or items.
func verifyJSON(t *testing.T, args ...string) (map[string]verifiedLine, int) {
	t.Helper()
	r := runProgram(t, append([]string{"verify", "--json"}, args...)...)
	if r.err != "" {
		t.Errorf("%q: %s", args, r.err)
	}
	lines := make(map[string]verifiedLine)
	for text := range strings.Lines(r.out) {
		var line verifiedLine
		if err := json.Unmarshal([]byte(text), &line); err != nil {
			t.Fatalf("%s: %v", text, err)
		}
		lines[filepath.Base(line.Name)] = line
	}
	return lines, r.status
}

// TestVerifyCases: each case gets the verdict in its name, with a reason that names the cause.
func TestVerifyCases(t *testing.T) {
	t.Parallel()
	reasons := map[string]string{
		"bad-base64": "base64", "bad-sexp": "cut off", "bad-signature-of-other-text": "sha256 of the text",
		"bad-signed-part-lacks-references": "References isn't signed", "bad-tampered-narhash": "sha256 of the text",
		"bad-tampered-reference": "sha256 of the text", "bad-unauthorized-key": "unauthorized", "bad-version-2": `version "2"`, "bad-unsigned": "",
	}
	lines, status := verifyJSON(t, "--acl="+cases+"/keys/acl", cases)
	if status != 1 || len(lines) != 17 {
		t.Fatalf("status %d, %d lines", status, len(lines))
	}
	for base, line := range lines {
		name := strings.TrimSuffix(base, ".narinfo")
		own, alone := verifyJSON(t, "--acl="+cases+"/keys/acl", filepath.Join(cases, base))
		if len(own) != 1 {
			t.Errorf("%s: %v", name, own)
		}
		if strings.HasPrefix(name, "ok-") {
			if line.Verdict != verdictValid || line.Authorized == nil || !*line.Authorized || line.Reason != "" || alone != 0 || line.Signer != "test.example" {
				t.Errorf("%s: status %d, %+v", name, alone, line)
			}
			continue
		}
		reason, known := reasons[name]
		if alone != 1 || !strings.Contains(line.Reason, reason) || !known {
			t.Errorf("%s: status %d, %+v", name, alone, line)
		}
		if (line.Verdict == verdictUnsigned) != (name == "bad-unsigned") || (line.Verdict == verdictValid) != (name == "bad-unauthorized-key") {
			t.Errorf("%s: %+v", name, line)
		}
	}
	// Without keys, any key will do.
	if lines, status := verifyJSON(t, filepath.Join(cases, "bad-unauthorized-key.narinfo")); status != 0 || lines["bad-unauthorized-key.narinfo"].Authorized != nil {
		t.Errorf("status %d, %+v", status, lines)
	}
	key := read(t, cases, "keys/main.pub")
	text := succeed(t, "verify", "--authorized-key="+cases+"/keys/main.pub", "--authorized-key="+cases+"/keys/rsa.pub", cases+"/ok-ed25519.narinfo", cases+"/ok-rsa.narinfo")
	if !strings.Contains(text, "valid, signed by test.example with the key Ed25519 D35EA6267670FF1C…, authorized\n") || !strings.Contains(text, "RSA BF88948F73C441FC…") || !strings.Contains(key, "#D35EA6267670FF1C") {
		t.Errorf("%s", text)
	}
	if lines["ok-ed25519.narinfo"].Key != key {
		t.Errorf("the key is %q, want %q", lines["ok-ed25519.narinfo"].Key, key)
	}
}

// TestVerifyNars: nars of files and of items are compared with the narinfos.
func TestVerifyNars(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "published")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	publish(t, dir)
	p := newPlace(t)
	p.imports(t, dir)
	paths := []string{"/gnu/store/" + greeting, greet, libgreet[:32]}
	keys := "--acl=" + cases + "/keys/acl"
	lines, status := verifyJSON(t, append(p.args("verify", keys)[1:], paths...)...)
	if status != 0 || len(lines) != 3 {
		t.Fatalf("status %d, %+v", status, lines)
	}
	files, status := verifyJSON(t, keys, dir)
	if status != 0 || len(files) != len(examples) {
		t.Fatalf("status %d, %+v", status, files)
	}
	for _, all := range []map[string]verifiedLine{lines, files} {
		for name, line := range all {
			if len(line.Nars) != 1 || line.Nars[0].Verdict != verdictRight || line.Nars[0].NarHash == "" || line.Nars[0].Bytes == 0 || line.Verdict != verdictValid || !*line.Authorized {
				t.Errorf("%s: %+v", name, line)
			}
		}
	}
	if lines, status := verifyJSON(t, "--database="+p.database, greeting); status != 0 || lines[greeting].Nars[0].Verdict != verdictUnread {
		t.Errorf("without --storage: status %d, %+v", status, lines)
	}

	beside := func(base string) string { return filepath.Join(dir, "nar/lzip", base) }
	for _, name := range []func(string) string{p.nar, beside} {
		err := errors.Join(flip(name(greeting)), os.Truncate(name(greet), 100))
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Remove(p.nar(libgreet)); err != nil {
		t.Fatal(err)
	}
	lines, status = verifyJSON(t, append(p.args("verify")[1:], paths...)...)
	if status != 1 {
		t.Errorf("status %d", status)
	}
	for name, reason := range map[string]string{greeting: "", greet: "100", libgreet[:32]: "does not exist"} {
		if nar := lines[name].Nars[0]; nar.Verdict != verdictWrong || !strings.Contains(nar.Reason, reason) || nar.NarHash != "" {
			t.Errorf("%s: %+v", name, nar)
		}
	}
	files, status = verifyJSON(t, dir)
	if nars := [2]verifiedNarLine{files[narinfoName(greeting)].Nars[0], files[narinfoName(greet)].Nars[0]}; status != 1 || nars[0].Verdict != verdictWrong || nars[1].Verdict != verdictWrong || !strings.Contains(nars[1].Reason, "has 100 bytes") {
		t.Errorf("status %d, %+v", status, nars)
	}
	if err := os.Remove(beside(greeting)); err != nil {
		t.Fatal(err)
	}
	if lines, status := verifyJSON(t, filepath.Join(dir, narinfoName(greeting))); status != 0 || lines[narinfoName(greeting)].Nars[0].Verdict != verdictAbsent {
		t.Errorf("without the nar: status %d, %+v", status, lines)
	}
	if err := syscall.Mkfifo(beside(greeting), 0o644); err != nil {
		t.Fatal(err)
	}
	if lines, status := verifyJSON(t, filepath.Join(dir, narinfoName(greeting))); status != 2 || lines[narinfoName(greeting)].Nars[0].Verdict != verdictUnknown {
		t.Errorf("a pipe: status %d, %+v", status, lines)
	}
}

// otherAlgorithm returns a narinfo with a signature of an unsupported kind.
func otherAlgorithm(t *testing.T, text string) string {
	t.Helper()
	above, signature, _ := strings.Cut(text, "Signature: ")
	signature, below, _ := strings.Cut(signature, "\n")
	parts := strings.Split(signature, ";")
	sexp, err := base64.StdEncoding.DecodeString(parts[2])
	if err != nil {
		t.Fatal(err)
	}
	parts[2] = base64.StdEncoding.EncodeToString([]byte(strings.ReplaceAll(string(sexp), "ecdsa", "gost")))
	return above + "Signature: " + strings.Join(parts, ";") + "\n" + below
}

// TestVerifyUnknown: what can't be checked ends with status 2, and the rest is still checked.
func TestVerifyUnknown(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	p.imports(t, published(greeting))
	dir := t.TempDir()
	write := func(name, text string) string {
		name = filepath.Join(dir, name)
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		return name
	}
	good := published(greeting)
	for name, test := range map[string]struct {
		args   []string
		status int
		wanted string
	}{
		"no such file":      {[]string{dir + "/none.narinfo", good}, 2, "no such file"},
		"typo in a path":    {[]string{"--database=" + p.database, typo, good}, 2, "not in the index"},
		"empty directory":   {[]string{t.TempDir(), good}, 2, "no narinfos found"},
		"not a narinfo":     {[]string{write("x.narinfo", "hello\n"), good}, 1, "invalid"},
		"wrong name":        {[]string{write(strings.Repeat("0", 32)+".narinfo", read(t, good)), good}, 1, "it is named after"},
		"too long":          {[]string{write("long.narinfo", read(t, good)+strings.Repeat("#", narinfo.MaxSize)), good}, 1, "too large"},
		"other algorithm":   {[]string{write("dsa.narinfo", otherAlgorithm(t, read(t, good))), good}, 2, "can't be verified"},
		"no keys":           {[]string{"--acl=" + dir + "/none", good}, 2, "--acl"},
		"a key of another":  {[]string{"--authorized-key=" + good, good}, statusUsage, "--authorized-key"},
		"not a store path":  {[]string{"/gnu/store/x", good}, statusUsage, "not a store item"},
		"no database":       {[]string{"--database=" + dir + "/none.db", greeting}, 2, "none.db"},
		"storage not there": {[]string{"--database=" + p.database, "--storage=" + dir + "/none", greeting}, 2, "none"},
	} {
		r := runProgram(t, append([]string{"verify"}, test.args...)...)
		if r.status != test.status || !strings.Contains(r.out+r.err, test.wanted) {
			t.Errorf("%s: %+v", name, r)
		}
		if test.status < 64 && slices.Contains(test.args, good) && !strings.HasPrefix(test.args[0], "--a") && !strings.Contains(r.out, good+": valid") {
			t.Errorf("%s: the other narinfo isn't verified: %+v", name, r)
		}
	}
}
