package main

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"nar-herder/internal/testfs"
	"nar-herder/storage"
	"nar-herder/storage/directory"
)

// TestHealthReads: whether nars can be read decides, at the start as well, and what only
// keeps the server from writing is a warning.
func TestHealthReads(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		small bool // the file system of the storage
		spoil func(t *testing.T, p *place)
		args  []string
		// part is what the health is to say something of, and reason what; no part for nothing.
		part, reason string
		// broken: no nar can be read.
		broken bool
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
			spoil: func(t *testing.T, p *place) {
				if err := os.Rename(filepath.Join(p.storage, "nar"), filepath.Join(p.dir, "nar")); err != nil {
					t.Fatal(err)
				}
			},
			part:   "storage",
			reason: "is it mounted?", broken: true,
		},
		"below the minimum of free space": {
			small:  true,
			args:   []string{"--storage-minimum-free-space=15M"},
			part:   "storage_space",
			reason: "are free on the file system of the storage",
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
				for _, name := range []string{storage.OwnerName, storage.IdentityName} {
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
			if got := get(t, s.addresses[0], "/nar/lzip/"+greeting); (got.StatusCode == 200) == test.broken {
				t.Errorf("a nar: %s", got.Status)
			}
			var health struct{ Failing, Warnings map[string][]string }
			body := askByAddress(t, control, "/health").body
			if err := json.Unmarshal([]byte(body), &health); err != nil {
				t.Errorf("%v in %s", err, body)
			}
			parts, level := health.Warnings, "WARN"
			if test.broken {
				parts, level = health.Failing, "ERROR"
			}
			text := strings.Join(parts[test.part], "\n")
			if !strings.Contains(text, test.reason) || strings.Contains(body, p.dir) || strings.Contains(body, p.storage) {
				t.Errorf("/health: %s", body)
			}
			if logged := strings.Contains(s.err.String(), "level="+level); logged != (test.part != "") {
				t.Errorf("the log: %s", s.err.String())
			}
			metrics := askByAddress(t, control, "/metrics").body
			for _, part := range []string{"database", "storage", test.part} {
				value := "1"
				if part == test.part {
					value = "0"
				}
				if part != "" && !strings.Contains(metrics, "\nnarherder_healthy{part=\""+part+"\"} "+value+"\n") {
					t.Errorf("the metric of %s is not %s", part, value)
				}
			}
			s.stop(t, syscall.SIGTERM)
		})
	}
}

// denied is a byte store that can't be written, as on a file system that maps users.
type denied struct{ storage.ByteStore }

func (denied) Probe(context.Context) error { return fs.ErrPermission }

// TestHealthDenied: an error of the storage is reported if its directories don't show why.
func TestHealthDenied(t *testing.T) {
	t.Parallel()
	bytes, err := directory.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer bytes.Close()
	health := healthParts{store: &opened{Storage: storage.New(nil, denied{bytes}, storage.Options{})}, directory: t.TempDir()}
	if err := health.tryWriting(t.Context()); !errors.Is(err, fs.ErrPermission) {
		t.Errorf("%v, want %v", err, fs.ErrPermission)
	}
}
