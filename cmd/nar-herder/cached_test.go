package main

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"nar-herder/compression"
	"nar-herder/internal/mirrortest"
	"nar-herder/narinfo"
)

// cachedFiles returns the files that the narinfo lists after its original text.
func cachedFiles(t *testing.T, text, original string) (files []narinfo.File, n *narinfo.Narinfo) {
	t.Helper()
	n, err := narinfo.Parse([]byte(text))
	if err != nil || !strings.HasPrefix(text, original) {
		t.Fatalf("%v: %s", err, text)
	}
	before, err := narinfo.Parse([]byte(original))
	if err != nil {
		t.Fatal(err)
	}
	return n.Files[len(before.Files):], n
}

// checkCached tests a cached file with the program of its compression.
func checkCached(t *testing.T, s *server, n *narinfo.Narinfo, file narinfo.File, kept string) {
	t.Helper()
	got := get(t, s.addresses[0], "/"+file.URL)
	if got.StatusCode != 200 || file.Size >= 0 && int64(len(got.body)) != file.Size || got.body != read(t, kept) {
		t.Errorf("%s: %s, %d bytes, want %d", file.URL, got.Status, len(got.body), file.Size)
	}
	program := required(t, file.Compression)
	checks := [][]string{{"-t", "-"}}
	if file.Compression == "lzip" {
		checks = append(checks, []string{"-l", kept})
	}
	for _, args := range checks {
		cmd := exec.Command(program, args...)
		cmd.Stdin = strings.NewReader(got.body)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%s: %s: %v: %s", file.URL, cmd.Args, err, out)
		}
	}
	checkDecompressed(t, file.URL, n, got.body, program, "-dc")
}

// TestCachedCompressions downloads each nar three times; then all narinfos list zstd and
// lzip. The server is a separate process, as encoders are many times slower with the race
// detector.
func TestCachedCompressions(t *testing.T) {
	t.Parallel()
	required(t, "lzip")
	required(t, "zstd")
	p := newPlace(t)
	source := filepath.Join(testdata, "published")
	p.imports(t, source)
	dirs := map[string]string{"zstd": filepath.Join(p.dir, "zstd"), "lzip": filepath.Join(p.dir, "lzip")}
	s := p.serveProcess(t, "--log-level=INFO", "--ttl=7d", "--enable-cached-compression=zstd:19", "--enable-cached-compression=lzip:9",
		"--cached-compression-ttl=zstd=1d", "--cached-compression-directory=zstd="+dirs["zstd"], "--cached-compression-directory=lzip="+dirs["lzip"])
	sources, err := filepath.Glob(filepath.Join(source, "*.narinfo"))
	if err != nil || len(sources) == 0 {
		t.Fatal(sources, err)
	}
	for _, name := range sources {
		n, err := narinfo.Parse([]byte(read(t, name)))
		if err != nil {
			t.Fatal(err)
		}
		for range 3 {
			if got := get(t, s.addresses[0], "/"+n.Files[0].URL); got.StatusCode != 200 {
				t.Errorf("%s: %s", n.Files[0].URL, got.Status)
			}
		}
	}
	for _, name := range sources {
		target, original := "/"+filepath.Base(name), read(t, name)
		var served answer
		poll(t, target+" names both", 4*patience, longestPause, func() bool {
			served = get(t, s.addresses[0], target)
			return strings.Contains(served.body, "Compression: zstd\n") && strings.Contains(served.body, "Compression: lzip\n")
		})
		files, n := cachedFiles(t, served.body, original)
		want := "max-age=604800"
		for _, file := range files {
			if file.Compression == "zstd" {
				want = "max-age=86400"
			}
			checkCached(t, s, n, file, filepath.Join(dirs[file.Compression], n.StorePath.BaseName()))
		}
		if got := served.Header.Get("Cache-Control"); got != want {
			t.Errorf("%s: %s, want %s", target, got, want)
		}
	}
	s.stop(t, syscall.SIGTERM)
}

// TestCachedNginx sends cached nars with nginx.
func TestCachedNginx(t *testing.T) {
	t.Parallel()
	nginx := required(t, "nginx")
	p := newPlace(t)
	source := filepath.Join(testdata, "published")
	p.imports(t, source)
	dir := filepath.Join(p.dir, "zstd")
	s := p.serve(t, "--x-accel-redirect", "--enable-cached-compression=zstd", "--cached-compression-directory=zstd="+dir, "--cached-compression-min-uses=1")
	front := ownHost() + ":" + instancePort
	startNginx(t, nginx, front, fmt.Sprintf(`
		upstream herder { server %s; }
		server {
			listen %s;
			location / { proxy_pass http://herder; }
			location /internal/nar/ { internal; alias %s/nar/; }
			location /internal/cached-nar/zstd/ { internal; alias %s/; }
		}`, s.addresses[0], front, p.storage, dir))
	// The name needs escapes.
	original := read(t, source, "2y8b79q71l3w1d9kh7i1b5al0mlahnd3.narinfo")
	before, err := narinfo.Parse([]byte(original))
	if err != nil {
		t.Fatal(err)
	}
	if got := get(t, front, "/"+before.Files[0].URL); got.StatusCode != 200 {
		t.Fatalf("%s", got.Status)
	}
	var text string
	until(t, "the narinfo lists it", func() bool {
		text = get(t, front, "/2y8b79q71l3w1d9kh7i1b5al0mlahnd3.narinfo").body
		return strings.Contains(text, "Compression: zstd\n")
	})
	files, n := cachedFiles(t, text, original)
	if len(files) != 1 {
		t.Fatalf("%v", files)
	}
	got := get(t, front, "/"+files[0].URL)
	if !strings.Contains(files[0].URL, "%2Bx%3Dy%3Fz") {
		t.Errorf("the URL has no escapes: %s", files[0].URL)
	}
	if got.StatusCode != 200 || !strings.HasPrefix(got.Header.Get("Server"), "nginx") || got.body != read(t, dir, n.StorePath.BaseName()) {
		t.Errorf("%s: %s %v, %d bytes", files[0].URL, got.Status, got.Header, len(got.body))
	}
	if direct := get(t, s.addresses[0], "/"+files[0].URL); direct.body != "" || !strings.HasPrefix(direct.Header.Get("X-Accel-Redirect"), "/internal/cached-nar/zstd/") {
		t.Errorf("not sent by nginx: %v", direct.Header)
	}
}

// generatedItem is an item that [generate] writes.
type generatedItem struct {
	base, text string
	nar        []byte
}

// generatedItems are made once, as the race detector makes that slow.
var generatedItems struct {
	sync.Mutex
	items  []generatedItem
	random *rand.ChaCha8
}

func itemsOf(count int) []generatedItem {
	g := &generatedItems
	g.Lock()
	defer g.Unlock()
	if g.random == nil {
		g.random = rand.NewChaCha8([32]byte{1})
	}
	for i := len(g.items); i < count; i++ {
		raw := make([]byte, 10_000+i*700)
		_, _ = g.random.Read(raw) // never fails
		nar := hex.AppendEncode(nil, raw)
		base := fmt.Sprintf("%032d-item", i)
		text := string(mirrortest.Sign(fmt.Appendf(nil, "StorePath: /gnu/store/%s\nURL: nar/%s\nCompression: none\nFileSize: %d\nNarHash: %s\nNarSize: %d\nReferences: \n",
			base, base, len(nar), narinfo.NarHash(sha256.Sum256(nar)), len(nar))))
		g.items = append(g.items, generatedItem{base, text, nar})
	}
	return g.items[:count:count]
}

// generate writes generated narinfos with their nars, and returns the texts.
func generate(t *testing.T, dir string, count int) (texts map[string]string) {
	t.Helper()
	texts = make(map[string]string, count)
	if err := os.MkdirAll(filepath.Join(dir, "nar"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, item := range itemsOf(count) {
		hash := item.base[:32]
		err := errors.Join(
			os.WriteFile(filepath.Join(dir, "nar", item.base), item.nar, 0o644),
			os.WriteFile(filepath.Join(dir, hash+".narinfo"), []byte(item.text), 0o644))
		if err != nil {
			t.Fatal(err)
		}
		texts["/"+hash+".narinfo"] = item.text
	}
	return texts
}

// generated calls generate for a new directory, and also returns the sorted targets of the
// narinfos.
func generated(t *testing.T, count int) (dir string, texts map[string]string, targets []string) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), "source")
	texts = generate(t, dir, count)
	return dir, texts, slices.Sorted(maps.Keys(texts))
}

// usage returns the disk usage of the files in a directory, in bytes.
func usage(t *testing.T, dir string) (sum int64) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range entries {
		var stat syscall.Stat_t
		err := syscall.Lstat(filepath.Join(dir, entry.Name()), &stat)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
		sum += stat.Blocks * 512
	}
	return sum
}

// TestCachedKilled kills the server repeatedly while it compresses 200 nars, which don't
// all fit. No narinfo ever lists an incomplete file, and the directory never exceeds its
// limit.
func TestCachedKilled(t *testing.T) {
	t.Parallel()
	const count, limit = 200, 10 << 20
	p := newPlace(t)
	texts := generate(t, filepath.Join(p.dir, "source"), count)
	p.imports(t, filepath.Join(p.dir, "source"))
	dir := filepath.Join(p.dir, "zstd")
	args := []string{"--log-level=INFO", "--enable-cached-compression=zstd:9", "--cached-compression-directory=zstd=" + dir,
		"--cached-compression-min-uses=1", fmt.Sprintf("--cached-compression-directory-max-size=zstd=%dB", limit)}
	// After each kill check some of them, in the order of a map, and all at the end.
	check := func(s *server, most int) (named int) {
		for target, original := range texts {
			if most--; most < 0 {
				break
			}
			files, n := cachedFiles(t, get(t, s.addresses[0], target).body, original)
			for _, file := range files {
				named++
				got := get(t, s.addresses[0], "/"+file.URL)
				reader, err := compression.NewReader(file.Compression, strings.NewReader(got.body))
				if err != nil {
					t.Fatal(err)
				}
				nar := newNarHash()
				_, err = io.Copy(nar, reader)
				reader.Close()
				if got.StatusCode != 200 || err != nil {
					t.Errorf("%s: %s, %v", file.URL, got.Status, err)
				}
				nar.check(t, file.URL, n)
			}
		}
		if used := usage(t, dir); used > limit {
			t.Errorf("%d of %d bytes are used", used, limit)
		}
		return named
	}
	s := p.serveProcess(t, args...)
	for target, text := range texts {
		n, err := narinfo.Parse([]byte(text))
		if err != nil {
			t.Fatal(err)
		}
		if got := get(t, s.addresses[0], "/"+n.Files[0].URL); got.StatusCode != 200 {
			t.Fatalf("%s: %s", target, got.Status)
		}
	}
	until(t, "uses are recorded and files made", func() bool { return usage(t, dir) > 4096 }) // the owner file has less
	for range kills(t) {
		time.Sleep(time.Duration(rand.IntN(150)) * time.Millisecond)
		s.kill(t)
		if used := usage(t, dir); used > limit {
			t.Errorf("killed: %d of %d bytes are used", used, limit)
		}
		s = p.serveProcess(t, args...)
		check(s, count/8)
	}
	if check(s, count) == 0 {
		t.Error("nothing was made")
	}
	until(t, "the queue is empty", func() bool {
		return strings.Contains(get(t, s.addresses[0], "/metrics").body, "\nnarherder_cached_nars_queued 0\n")
	})
	s.stop(t, syscall.SIGTERM)
	s = p.serve(t, args...)
	until(t, "unfinished files are removed", func() bool {
		half, err := filepath.Glob(filepath.Join(dir, ".*"))
		return err == nil && len(half) == 0
	})
	named := check(s, count)
	s.stop(t, syscall.SIGTERM)
	t.Logf("%d of %d nars are listed, %d of %d bytes used", named, count, usage(t, dir), limit)
}
