package main

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"nar-herder/internal/rounds"
	"nar-herder/narinfo"
	"nar-herder/storage/index"
)

// unsignedItems makes a directory of small items without signatures.
func unsignedItems(t *testing.T, count int) (dir string, texts map[string]string) {
	t.Helper()
	dir, texts, _ = generated(t, count)
	for target, text := range texts {
		if err := os.WriteFile(filepath.Join(dir, target), []byte(unsigned(text)), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir, texts
}

// TestSignKilled kills sign --all repeatedly. Each item has its old narinfo or the new one, and
// the next run signs the rest.
func TestSignKilled(t *testing.T) {
	t.Parallel()
	const count = 2500 // several transactions
	p := newPlace(t)
	dir := filepath.Join(p.dir, "source")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	var hashes []string
	for i := range count {
		hash := fmt.Sprintf("%032d", i)
		hashes = append(hashes, hash)
		text := fmt.Sprintf("StorePath: /gnu/store/%s-item\nURL: nar/%[1]s-item\nCompression: none\nFileSize: 1\nNarHash: %s\nNarSize: 1\nReferences: \n", hash, narinfo.NarHash{byte(i), byte(i >> 8)})
		if err := os.WriteFile(filepath.Join(dir, hash+".narinfo"), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	importUnsigned(t, count, "import", "--narinfos-only", "--database="+p.database, dir)
	x, err := index.Open(t.Context(), p.database, index.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer x.Close()
	lastChange := func() int64 {
		page, err := x.ChangesAfter(t.Context(), 0, 1)
		if err != nil {
			t.Fatal(err)
		}
		return page.Last
	}
	halfway := 0
	keys := make([]string, 0, 4)
	for range rounds.Of(3) {
		private, public := newKey(t)
		keys = append(keys, "--authorized-key="+public)
		args := []string{"sign", "--database=" + p.database, "--key=" + private, "--all", "--replace"}
		killed := command(args...)
		before := lastChange()
		killed.start(t)
		catch(t, "some are signed", func() bool { return lastChange() > before })
		time.Sleep(time.Duration(rand.IntN(50)) * time.Millisecond)
		_ = killed.Process.Kill() // it may have ended
		<-killed.ended
		// Each item is unsigned, or has a valid signature by one of the keys.
		lines, status := verifyJSON(t, append(append([]string{"--database=" + p.database}, keys...), hashes...)...)
		if len(lines) != count || status == int(statusUnknown) {
			t.Fatalf("status %d, %d lines", status, len(lines))
		}
		signed := 0
		for _, line := range lines {
			if line.Verdict == verdictUnsigned {
				continue
			}
			if line.Verdict != verdictValid || !*line.Authorized {
				t.Errorf("%+v", line)
			}
			if line.Key == read(t, public) {
				signed++
			}
		}
		if 0 < signed && signed < count {
			halfway++
		}
		out := succeed(t, args...)
		if want := countOf(count-signed, "narinfo") + " signed\n"; !strings.HasPrefix(out, want) {
			t.Errorf("%d were signed before, then: %s", signed, out)
		}
		if lines, status := verifyJSON(t, append([]string{"--database=" + p.database, "--authorized-key=" + public}, hashes...)...); status != 0 || len(lines) != count {
			t.Errorf("status %d, %d lines", status, len(lines))
		}
	}
	// Interrupted, it says how to go on, and what it reports is durable.
	private, _ := newKey(t)
	args := []string{"sign", "--database=" + p.database, "--key=" + private, "--all", "--replace"}
	interrupted := within(args...)
	before := lastChange()
	interrupted.start(t)
	catch(t, "some are signed", func() bool { return lastChange() > before })
	interrupted.cancel()
	if status := interrupted.wait(t); status == 0 {
		t.Log("it ended before it was interrupted")
	} else if !strings.Contains(interrupted.err.String(), "the same command signs the rest") {
		t.Errorf("%s", interrupted.err.String())
	}
	done := countOf(int(lastChange()-before), "narinfo") + " signed\n"
	if out := interrupted.out.String(); !strings.HasPrefix(out, done) {
		t.Errorf("%s, want %s", out, done)
	}
	succeed(t, args...)
	t.Logf("%d of %d runs were killed halfway", halfway, len(keys))
}

// hashesOf returns the hashes of the items with the targets.
func hashesOf(texts map[string]string) (hashes []string) {
	for target := range texts {
		hashes = append(hashes, strings.TrimSuffix(strings.TrimPrefix(target, "/"), ".narinfo"))
	}
	return hashes
}

// TestSignConcurrently signs beside imports and removals of the same items.
func TestSignConcurrently(t *testing.T) {
	t.Parallel()
	private, public := newKey(t)
	const count = 20
	p := newPlace(t)
	dir, texts := unsignedItems(t, count)
	p.importsUnsigned(t, count, dir)
	hashes := hashesOf(texts)
	var others sync.WaitGroup
	others.Go(func() {
		for range 4 {
			succeed(t, p.args("import", "--keep", "--sign-with="+private, dir)...)
		}
	})
	others.Go(func() {
		for i := range 4 {
			succeed(t, p.args("remove", "--now", hashes[i])...)
			succeed(t, p.args("remove", hashes[10+i])...)
		}
	})
	for range 6 {
		succeed(t, "sign", "--database="+p.database, "--key="+private, "--all")
	}
	others.Wait()
	succeed(t, p.args("import", "--keep", "--sign-with="+private, dir)...)
	if lines, status := verifyJSON(t, append(p.args("verify", "--authorized-key="+public)[1:], hashes...)...); status != 0 || len(lines) != count {
		t.Errorf("status %d, %d lines: %+v", status, len(lines), lines)
	}
	if out := succeed(t, p.args("check", "--verify")...); !strings.Contains(out, "nothing is wrong") {
		t.Errorf("%s", out)
	}
}

// TestSignWithdrawn: withdrawn items stay withdrawn, and are not signed.
func TestSignWithdrawn(t *testing.T) {
	t.Parallel()
	private, _ := newKey(t)
	p := newPlace(t)
	dir, texts := unsignedItems(t, 3)
	p.importsUnsigned(t, 3, dir)
	hashes := hashesOf(texts)
	succeed(t, p.args("remove", hashes[0])...)
	if out := succeed(t, "sign", "--database="+p.database, "--key="+private, "--all"); out != "2 narinfos signed\n  2 had no signature\n  1 not signed: they are withdrawn\n" {
		t.Errorf("%q", out)
	}
	if out := succeed(t, "list", "--database="+p.database, "--withdrawn"); strings.Count(out, "\n") != 1 {
		t.Errorf("%s", out)
	}
	missing := strings.Repeat("z", 32)
	r := runProgram(t, "sign", "--database="+p.database, "--key="+private, hashes[1], missing)
	if r.status != 1 || !strings.Contains(r.err, missing+": ") || !strings.Contains(r.out, "1 have a signature by this key already") {
		t.Errorf("%+v", r)
	}
}

// TestSignMirrored: mirrors get new signatures, keep the nars, and can't sign what their source
// has.
func TestSignMirrored(t *testing.T) {
	t.Parallel()
	private, public := newKey(t)
	next, nextPublic := newKey(t)
	p := newPlace(t)
	p.imports(t, small()...)
	source := p.serve(t, "--log-level=INFO")
	m := newPlace(t)
	mirror := m.serve(t, "--log-level=INFO", "--mirror=http://"+source.addresses[0])
	stored := func() bool {
		for _, name := range small() {
			if got := get(t, mirror.addresses[0], "/"+filepath.Base(name)+"/info"); got.body != `{"stored": true}` {
				return false
			}
		}
		return true
	}
	until(t, "the mirror has the nars", stored)
	sent := narsSentOf(t, source.addresses[0], float64(len(small())))
	r := runProgram(t, "sign", "--database="+m.database, "--key="+private, "--replace", "--all")
	if r.status != 1 || !strings.Contains(r.out, "0 narinfos signed\n  5 not signed: the mirrored instance has them") {
		t.Errorf("%+v", r)
	}
	succeed(t, "sign", "--database="+p.database, "--key="+private, "--replace", "--all")
	for _, name := range small() {
		target := "/" + filepath.Base(name)
		until(t, "the mirror has the new signature", func() bool {
			n, err := narinfo.Parse([]byte(get(t, mirror.addresses[0], target).body))
			if err != nil {
				return false
			}
			key, err := n.SigningKey()
			return err == nil && key == read(t, public)
		})
		text := get(t, mirror.addresses[0], target).body
		wantSigned(t, public, text, read(t, name))
		if text != get(t, source.addresses[0], target).body {
			t.Errorf("the mirror's narinfo differs: %s", text)
		}
	}
	succeed(t, "sign", "--database="+m.database, "--key="+next, "--replace", "--mirrored", greeting)
	target := "/" + narinfoName(greeting)
	until(t, "the mirror's own signature", func() bool {
		return get(t, mirror.addresses[0], target).body != get(t, source.addresses[0], target).body
	})
	wantSigned(t, nextPublic, get(t, mirror.addresses[0], target).body, read(t, published(greeting)))
	if !stored() || narsSent(t, source.addresses[0]) != sent {
		t.Error("the mirror has fetched nars again")
	}
	// Mirrors of the original's kind see an addition with the new text.
	var changes struct {
		Changes []struct{ Change, Data string } `json:"recent_changes"`
	}
	body := get(t, source.addresses[0], "/recent-changes?since=2000-01-01+00:00:00").body
	if err := json.Unmarshal([]byte(body), &changes); err != nil || len(changes.Changes) == 0 {
		t.Fatalf("%v: %s", err, body)
	}
	for _, change := range changes.Changes {
		wantSigned(t, public, change.Data, read(t, published(strings.TrimPrefix(storePathOf(t, change.Data), "/gnu/store/"))))
		if change.Change != "addition" {
			t.Errorf("%+v", change)
		}
	}
}
