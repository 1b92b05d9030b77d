package main

import (
	"math/rand/v2"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"nar-herder/narinfo"
)

// cachedFiles returns what narinfos name below their own text.
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

// checkCached has a file of the cache tested by the program of its compression.
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
	cmd := exec.Command(program, "-dc")
	cmd.Stdin = strings.NewReader(got.body)
	nar, err := cmd.Output()
	if err != nil {
		t.Errorf("%s: %v", file.URL, err)
	}
	checkNar(t, file.URL, n, string(nar))
}

// TestCachedCompressions downloads each nar three times; then all narinfos name
// zstd and lzip.
func TestCachedCompressions(t *testing.T) {
	t.Parallel()
	required(t, "lzip")
	required(t, "zstd")
	p := newPlace(t)
	source := filepath.Join(testdata, "published")
	p.imports(t, source)
	dirs := map[string]string{"zstd": filepath.Join(p.dir, "zstd"), "lzip": filepath.Join(p.dir, "lzip")}
	s := p.serve(t, "--log-level=INFO", "--ttl=7d", "--enable-cached-compression=zstd:19", "--enable-cached-compression=lzip:9",
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
		for end := time.Now().Add(4 * patience); ; time.Sleep(20 * time.Millisecond) {
			served = get(t, s.addresses[0], target)
			if strings.Contains(served.body, "Compression: zstd\n") && strings.Contains(served.body, "Compression: lzip\n") {
				break
			}
			if time.Now().After(end) {
				t.Fatalf("%s does not name both: %s", target, served.body)
			}
		}
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

// TestCachedKilled kills the server again and again while it compresses. No
// narinfo ever names a file that is not whole.
func TestCachedKilled(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	source := filepath.Join(testdata, "published")
	p.imports(t, source)
	dir := filepath.Join(p.dir, "zstd")
	args := []string{"--log-level=INFO", "--enable-cached-compression=zstd:9", "--cached-compression-directory=zstd=" + dir, "--cached-compression-min-uses=1"}
	sources, err := filepath.Glob(filepath.Join(source, "*.narinfo"))
	if err != nil || len(sources) == 0 {
		t.Fatal(sources, err)
	}
	check := func(s *server) (named int) {
		for _, name := range sources {
			files, n := cachedFiles(t, get(t, s.addresses[0], "/"+filepath.Base(name)).body, read(t, name))
			for _, file := range files {
				named++
				checkCached(t, s, n, file, filepath.Join(dir, n.StorePath.BaseName()))
			}
		}
		return named
	}
	s := p.serve(t, args...)
	for _, name := range sources {
		base := strings.TrimSuffix(filepath.Base(name), ".narinfo")
		n, err := narinfo.Parse([]byte(read(t, name)))
		if err != nil || base == "" {
			t.Fatal(err)
		}
		get(t, s.addresses[0], "/nar/"+url.PathEscape(n.StorePath.BaseName()))
	}
	until(t, "uses are written down", func() bool { return check(s) > 0 || dirHasFiles(dir) })
	for range 6 {
		time.Sleep(time.Duration(rand.IntN(150)) * time.Millisecond)
		if err := s.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		<-s.ended
		s = p.serve(t, args...)
		check(s)
	}
	wanted := 0
	for _, name := range sources {
		if !strings.Contains(read(t, name), "Compression: zstd\n") {
			wanted++
		}
	}
	until(t, "all are made", func() bool { return check(s) == wanted })
	s.stop(t, syscall.SIGTERM)
	left, err := os.ReadDir(dir)
	if err != nil || len(left) != wanted {
		t.Errorf("%d files for %d nars, %v", len(left), wanted, err)
	}
}

func dirHasFiles(dir string) bool {
	entries, err := os.ReadDir(dir)
	return err == nil && len(entries) > 0
}
