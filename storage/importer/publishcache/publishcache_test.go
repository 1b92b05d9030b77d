package publishcache

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

const item = "53vg2c3aabp5j4glak33kgdjqgf20dlp-gtk+-3.24.43"

func TestOf(t *testing.T) {
	t.Parallel()
	for file, want := range map[string]string{
		"/var/cache/zstd/" + item + ".narinfo":       "/var/cache",
		"/var/cache/none/" + item + ".narinfo":       "/var/cache",
		"/var/cache/nar/lzip/" + item + ".narinfo":   "/var/cache/nar",
		"zstd/" + item + ".narinfo":                  ".",
		"/var/cache/zstd/" + item[:32] + ".narinfo":  "", // as in a static mirror
		"/var/cache/zstd/" + item + ".narinfo.Xy12":  "",
		"/var/cache/zstd/" + item + ".nar":           "",
		"/var/cache/hashes/" + item + ".narinfo":     "",
		"/srv/published/" + item + ".narinfo":        "",
		"/var/cache/zstd/short-name.narinfo":         "",
		"/var/cache/zstd/" + item + "\x00/x.narinfo": "",
		"/var/cache/zstd/below/" + item + ".narinfo": "",
		"/var/cache/zstd/../x/" + item + ".narinfo":  "",
		"/var/cache/x/../zstd/" + item + ".narinfo":  "/var/cache",
		"/" + item + ".narinfo":                      "",
	} {
		if got := Of(file); got != want {
			t.Errorf("Of(%q) = %q, want %q", file, got, want)
		}
	}
}

// TestOfRelative: a directory is named from within.
func TestOfRelative(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "zstd")
	if err := os.MkdirAll(filepath.Join(dir, "below"), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Chdir(dir)
	if got := Of(item + ".narinfo"); got != filepath.Dir(dir) {
		t.Errorf("here: %q", got)
	}
	t.Chdir(filepath.Join(dir, "below"))
	if got := Of("../" + item + ".narinfo"); got != filepath.Dir(dir) {
		t.Errorf("above: %q", got)
	}
}

func TestNames(t *testing.T) {
	t.Parallel()
	for nar, want := range map[string][]string{
		"nar/zstd/" + item: {"zstd/" + item + ".nar", "nar/zstd/" + item + ".nar", "zstd/" + item, "nar/zstd/" + item},
		"nar/" + item:      {"none/" + item + ".nar", "nar/none/" + item + ".nar", "none/" + item, "nar/none/" + item},
	} {
		if got := Names(nar); !slices.Equal(got, want) {
			t.Errorf("Names(%q) = %q, want %q", nar, got, want)
		}
	}
}

// TestIsDuplicate: exactly one of several narinfos of an item is used.
func TestIsDuplicate(t *testing.T) {
	t.Parallel()
	now := time.Now()
	write := func(age time.Duration) func(name string) error {
		return func(name string) error {
			return errors.Join(os.WriteFile(name, []byte("text"), 0o644), os.Chtimes(name, time.Time{}, now.Add(-age)))
		}
	}
	for name, test := range map[string]struct {
		files map[string]func(name string) error // by type
		want  string
	}{
		"one":              {map[string]func(string) error{"zstd": write(0)}, "zstd"},
		"copies of an age": {map[string]func(string) error{"gzip": write(0), "lzip": write(0), "zstd": write(0)}, "gzip"},
		"the last":         {map[string]func(string) error{"gzip": write(time.Hour), "lzip": write(0), "zstd": write(time.Minute)}, "lzip"},
		"links": {map[string]func(string) error{"lzip": write(0), "zstd": func(name string) error {
			return os.Link(filepath.Join(filepath.Dir(filepath.Dir(name)), "lzip", filepath.Base(name)), name)
		}}, "lzip"},
		"a directory":     {map[string]func(string) error{"lzip": func(name string) error { return os.Mkdir(name, 0o755) }, "zstd": write(time.Hour)}, "zstd"},
		"a dangling link": {map[string]func(string) error{"lzip": func(name string) error { return os.Symlink("gone", name) }, "zstd": write(time.Hour)}, "zstd"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cache := t.TempDir()
			if err := os.Mkdir(filepath.Join(cache, Hashes), 0o755); err != nil {
				t.Fatal(err)
			}
			file := func(kind string) string { return filepath.Join(cache, kind, item+".narinfo") }
			for _, kind := range []string{"gzip", "lzip", "zstd"} { // links follow their targets
				if lay := test.files[kind]; lay != nil {
					if err := errors.Join(os.Mkdir(filepath.Dir(file(kind)), 0o755), lay(file(kind))); err != nil {
						t.Fatal(err)
					}
				}
			}
			directories := Types(cache)
			if len(directories) != len(test.files) {
				t.Fatalf("types: %q", directories)
			}
			for kind := range test.files {
				if info, err := os.Stat(file(kind)); err != nil || info.IsDir() {
					continue
				}
				if got := IsDuplicate(file(kind), directories); got != (kind != test.want) {
					t.Errorf("%s: %v", kind, got)
				}
			}
		})
	}
}

// TestTypesLeavesOutLinks: a walk of the cache doesn't follow links to directories, so their
// narinfos are no reason to skip others.
func TestTypesLeavesOutLinks(t *testing.T) {
	t.Parallel()
	cache := t.TempDir()
	if err := errors.Join(os.Mkdir(cache+"/zstd", 0o755), os.Symlink("zstd", cache+"/lzip"), os.WriteFile(cache+"/none", nil, 0o644)); err != nil {
		t.Fatal(err)
	}
	if got := Types(cache); !slices.Equal(got, []string{cache + "/zstd"}) {
		t.Errorf("%q", got)
	}
}
