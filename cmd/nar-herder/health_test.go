package main

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"nar-herder/internal/testfs"
	"nar-herder/storage"
	"nar-herder/storage/bytestore"
	"nar-herder/storage/directory"
)

// TestHealthReads: the server is ready if nars can be read, also at the start. Faults that
// only prevent writes are warnings.
func TestHealthReads(t *testing.T) {
	t.Parallel()
	unmountNars := func(t *testing.T, p *place) {
		if err := os.Rename(filepath.Join(p.storage, "nar"), filepath.Join(p.dir, "nar")); err != nil {
			t.Fatal(err)
		}
	}
	for name, test := range map[string]struct {
		small bool // the file system of the storage
		spoil func(t *testing.T, p *place)
		args  []string
		// part has a warning with the reason; no part means no warning.
		part, reason string
		// broken: no nar can be read, so the server is not ready.
		broken bool
		// noNar: nars are 404.
		noNar bool
		// quiet: the health itself logs nothing.
		quiet bool
	}{
		"good": {},
		"storage not mounted": {
			spoil:  func(t *testing.T, p *place) { p.storage = t.TempDir() },
			part:   "storage",
			reason: "is it mounted?", broken: true,
		},
		"front end's storage not mounted": {
			spoil:  func(t *testing.T, p *place) { p.storage = t.TempDir() },
			args:   []string{"--storage-read-only"},
			part:   "storage",
			reason: "is it mounted?", broken: true,
		},
		"nars not mounted in the storage": {
			spoil:  unmountNars,
			part:   "storage",
			reason: "is it mounted?", broken: true,
		},
		"nars not mounted in a front end's storage": {
			spoil:  unmountNars,
			args:   []string{"--storage-read-only"},
			part:   "storage",
			reason: "none of the sampled nars are there", noNar: true, quiet: true,
		},
		"most nars are missing": {
			spoil: func(t *testing.T, p *place) {
				unmountNars(t, p)
				nars := filepath.Join(p.storage, "nar/lzip")
				if err := os.MkdirAll(nars, 0o755); err != nil {
					t.Fatal(err)
				}
				// With fewer, samples might have none.
				for _, base := range []string{greeting, greet, libgreet, empty} {
					if err := os.Rename(filepath.Join(p.dir, "nar/lzip", base), filepath.Join(nars, base)); err != nil {
						t.Fatal(err)
					}
				}
			},
			part:   "storage",
			reason: "sampled nars are missing", quiet: true,
		},
		"below the minimum of free space": {
			small:  true,
			args:   []string{"--storage-minimum-free-space=15M"},
			part:   "storage_space",
			reason: "are free on the file system of the storage", quiet: true,
		},
		"full": {
			small:  true,
			spoil:  func(t *testing.T, p *place) { testfs.Fill(t, p.storage) },
			part:   "storage_writes",
			reason: "no space left on device",
		},
		"read-only": {
			spoil:  func(t *testing.T, p *place) { p.storage = testfs.ReadOnly(t, p.storage) },
			part:   "storage_writes",
			reason: "read-only file system",
		},
		"front end of nars without notes": {
			spoil: func(t *testing.T, p *place) {
				for _, name := range []string{bytestore.OwnerName, bytestore.IdentityName} {
					if err := os.Remove(filepath.Join(p.storage, name)); err != nil && !os.IsNotExist(err) {
						t.Fatal(err)
					}
				}
			},
			args: []string{"--storage-read-only"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPlace(t)
			if test.small {
				p.storage = testfs.Small(t, 16<<20)
			}
			p.imports(t, filepath.Join(testdata, "published"))
			if test.spoil != nil {
				test.spoil(t, &p)
			}
			s := p.serve(t, append(test.args, "--log-level=INFO", "--control-port=0", "--public-metrics=no")...)
			control, want := controlAddress(t, s.process), 200
			if test.broken {
				want = 503
			}
			for _, path := range []string{"/health", "/health/ready"} {
				if got := askByAddress(t, control, path); got.StatusCode != want {
					t.Errorf("%s: %s %s", path, got.Status, got.body)
				}
			}
			if got := get(t, s.addresses[0], "/health/ready"); got.StatusCode != want || strings.Contains(got.body, test.part) != (test.part == "") {
				t.Errorf("/health/ready: %s %s", got.Status, got.body)
			}
			if got := get(t, s.addresses[0], "/health/live"); got.StatusCode != 200 {
				t.Errorf("/health/live: %s %s", got.Status, got.body)
			}
			if got := get(t, s.addresses[0], "/nar/lzip/"+greeting); (got.StatusCode == 200) == (test.broken || test.noNar) {
				t.Errorf("a nar: %s", got.Status)
			}
			until(t, "the health says "+test.reason, func() bool {
				var health struct{ Failing, Warnings map[string][]string }
				body := askByAddress(t, control, "/health").body
				if err := json.Unmarshal([]byte(body), &health); err != nil || strings.Contains(body, p.dir) || strings.Contains(body, p.storage) {
					t.Errorf("%v in %s", err, body)
				}
				parts := health.Warnings
				if test.broken {
					parts = health.Failing
				}
				return strings.Contains(strings.Join(parts[test.part], "\n"), test.reason)
			})
			level := " level=WARN "
			if test.broken {
				level = " level=ERROR "
			}
			if test.part != "" && !test.quiet {
				until(t, "the log has it", func() bool {
					return slices.ContainsFunc(strings.Split(s.err.String(), "\n"), func(line string) bool {
						return strings.Contains(line, level) && strings.Contains(line, " part="+test.part+" ")
					})
				})
			} else if log := s.err.String(); strings.Contains(log, " part=") {
				t.Errorf("the log: %s", log)
			}
			for _, part := range []string{"database", "storage", test.part} {
				value := "1"
				if part == test.part {
					value = "0"
				}
				if part != "" {
					until(t, "the metric of "+part+" is "+value, func() bool {
						return strings.Contains(askByAddress(t, control, "/metrics").body, "\nnarherder_healthy{part=\""+part+"\"} "+value+"\n")
					})
				}
			}
			s.stop(t, syscall.SIGTERM)
		})
	}
}

// denied is a byte store that can't be written to, as on a file system that maps users.
type denied struct{ bytestore.Store }

func (denied) Probe(context.Context) error { return fs.ErrPermission }

// TestHealthDenied: an error of the storage is reported if its directories don't explain
// it.
func TestHealthDenied(t *testing.T) {
	t.Parallel()
	bytes, err := directory.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer bytes.Close()
	parts := &subsystems{store: &opened{Storage: storage.New(nil, denied{bytes}, storage.Options{})}, ownership: new(ownership)}
	if err := parts.tryWriting(t.Context(), t.TempDir()); !errors.Is(err, fs.ErrPermission) {
		t.Errorf("%v, want %v", err, fs.ErrPermission)
	}
}

// TestHealthOfUnfinishedCopy: a storage without an owner and with a quarter of the nars is
// served.
func TestHealthOfUnfinishedCopy(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	source, _, targets := generated(t, 60)
	files := func(targets []string) (names []string) {
		for _, target := range targets {
			names = append(names, filepath.Join(source, target))
		}
		return names
	}
	p.imports(t, files(targets[:45])...)
	p.imports(t, files(targets[45:])...)
	for _, target := range targets[:45] {
		base, _, _ := strings.Cut(filepath.Base(target), ".")
		if err := os.Remove(filepath.Join(p.storage, "nar", base+"-item")); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Remove(filepath.Join(p.storage, bytestore.OwnerName)); err != nil {
		t.Fatal(err)
	}
	s := p.serve(t)
	if got := get(t, s.addresses[0], "/health/ready"); got.StatusCode != 200 {
		t.Errorf("/health/ready: %s %s", got.Status, got.body)
	}
	for _, text := range []string{"the storage has no owner, and lacks nars", "sampled nars are missing", "see storage_owner"} {
		healthSays(t, s, text)
	}
	s.stop(t, syscall.SIGTERM)
}
