package storage_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"nar-herder/storage"
	"nar-herder/storage/check"
	"nar-herder/storage/importer"
	"nar-herder/storage/index"
	"nar-herder/storage/narcheck"
	"nar-herder/storage/recount"
)

// layouts are where an import finds a nar. Each returns the file.
var layouts = map[string]func(t *testing.T, p place, source string, f fake) (file string, options importer.Options){
	"moved": func(t *testing.T, _ place, source string, f fake) (string, importer.Options) {
		lay(t, source, f)
		return filepath.Join(source, f.name()), importer.Options{}
	},
	"copied": func(t *testing.T, _ place, source string, f fake) (string, importer.Options) {
		lay(t, source, f)
		return filepath.Join(source, f.name()), importer.Options{Keep: true}
	},
	"stored": func(t *testing.T, p place, source string, f fake) (string, importer.Options) {
		write(t, filepath.Join(source, f.hash().String()+".narinfo"), f.text())
		layNars(t, p.store, f)
		return filepath.Join(p.store, f.name()), importer.Options{}
	},
}

// TestImportVerifies: wrong nars are refused, and nothing changes.
func TestImportVerifies(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{"none", "gzip", "zstd", "lzip"} {
		for name, test := range narFiles(t, kind) {
			for layout, layOut := range layouts {
				t.Run(kind+"/"+name+"/"+layout, func(t *testing.T) {
					t.Parallel()
					p := memoryPlace(t)
					s := p.openTest(t)
					other := genuine(t, 2, "gzip")
					source := t.TempDir()
					lay(t, source, other)
					file, options := layOut(t, p, source, test.fake)
					var decoded counter
					options.Decode = decoded.decode
					before, err := os.Stat(file)
					if err != nil {
						t.Fatal(err)
					}
					r := importer.New(s).Add(t.Context(), &importer.Addition{
						Narinfo: test.parsed(), Directories: []string{source}, Keep: options.Keep, Decode: options.Decode,
					})
					if decoded.Load() > 1<<20 {
						t.Errorf("%d bytes were decompressed of a nar of %d", decoded.Load(), len(test.nar))
					}
					if !test.wrong {
						item, err := s.Item(t.Context(), test.hash())
						if r.Outcome != importer.Added || r.Unverified != 0 || err != nil || item.VerifiedAt.IsZero() {
							t.Errorf("%+v; %+v, %v", r, item, err)
						}
						wantServed(t, s, test.fake)
						return
					}
					if !errors.Is(r.Err, narcheck.ErrWrongNar) || !strings.Contains(r.Err.Error(), test.name()) || strings.Contains(r.Err.Error(), "\n") {
						t.Errorf("%v %v", r.Outcome, r.Err)
					}
					if _, err := s.Item(t.Context(), test.hash()); !errors.Is(err, storage.ErrNotFound) {
						t.Errorf("the item: %v", err)
					}
					after, err := os.Stat(file)
					if err != nil || !os.SameFile(before, after) || !has(file, test.content) {
						t.Errorf("the source was moved or changed: %v", err)
					}
					// The others are imported.
					wantOutcomes(t, importAll(t, s, options, source), "1 failed, 1 added")
					wantServed(t, s, other)
					want := []string{}
					if layout == "stored" {
						want = append(want, "stranger "+test.name())
					}
					wantFindings(t, s, want...)
				})
			}
		}
	}
}

// TestImportVerifiesAll: each file of a narinfo is verified.
func TestImportVerifiesAll(t *testing.T) {
	t.Parallel()
	s := newPlace(t).openTest(t)
	f := genuine(t, 1, "lzip")
	f.extra = []fake{{kind: "zstd", content: compressed(t, "zstd", f.nar)}, {kind: "gzip", content: compressed(t, "gzip", f.nar[:len(f.nar)-1]+"x")}}
	options := importer.Options{Decode: decode}
	source := laid(t, f)
	results := importAll(t, s, options, source)
	wantOutcomes(t, results, "1 failed")
	for _, r := range results {
		if r.Err == nil || !strings.Contains(r.Err.Error(), "nar/gzip/") || !strings.Contains(r.Err.Error(), "its hash is") {
			t.Errorf("%v", r.Err)
		}
	}
	wantFindings(t, s)
	f.extra[1].content = compressed(t, "gzip", f.nar)
	wantOutcomes(t, importAll(t, s, options, laid(t, f)), "1 added")
	wantServed(t, s, f)
}

// TestImportReplacesWrong: a wrong file in the storage, which no row claims, is replaced by the
// right one beside the narinfo.
func TestImportReplacesWrong(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	s := p.openTest(t)
	f := genuine(t, 1, "none")
	wrong := f
	wrong.content = strings.ToUpper(f.content)
	layNars(t, p.store, wrong)
	options := importer.Options{Decode: decode}
	source := t.TempDir()
	write(t, filepath.Join(source, f.hash().String()+".narinfo"), f.text())
	results := importAll(t, s, options, source)
	wantOutcomes(t, results, "1 failed")
	for _, r := range results {
		if r.Err == nil || !strings.Contains(r.Err.Error(), "in storage "+p.store) || !strings.Contains(r.Err.Error(), "replace it with the right file") {
			t.Errorf("%v", r.Err)
		}
	}
	wantFindings(t, s, "stranger "+f.name())
	layNars(t, source, f)
	wantOutcomes(t, importAll(t, s, options, source), "1 added")
	wantServed(t, s, f)
	wantFindings(t, s)
}

// TestImportVerifiedAt: when the files of an item were verified, over several imports.
func TestImportVerifiedAt(t *testing.T) {
	t.Parallel()
	f := genuine(t, 1, "lzip")
	signed, both, rebuilt := f, f, genuine(t, 1, "gzip")
	signed.note = "signed anew"
	both.extra = []fake{{kind: "zstd", content: compressed(t, "zstd", f.nar)}}
	rebuilt.nar += "."
	rebuilt.content = compressed(t, "gzip", rebuilt.nar)
	type step struct {
		f        fake
		verify   bool
		want     string
		verified int // the hour of VerifiedAt; 0 for never
		read     bool
		lose     bool // remove the stored file before
		textOnly bool
	}
	for name, steps := range map[string][]step{
		"verified":                    {{f: f, verify: true, want: "1 added", verified: 1, read: true}},
		"not verified":                {{f: f, want: "1 added"}},
		"known":                       {{f: f, verify: true, want: "1 added", verified: 1, read: true}, {f: f, verify: true, want: "1 known", verified: 1}},
		"known, never verified":       {{f: f, want: "1 added"}, {f: f, verify: true, want: "1 known"}},
		"another text":                {{f: f, verify: true, want: "1 added", verified: 1, read: true}, {f: signed, verify: true, want: "1 updated", verified: 1}},
		"another text, unverified":    {{f: f, verify: true, want: "1 added", verified: 1, read: true}, {f: signed, want: "1 updated", verified: 1}},
		"text only":                   {{f: f, verify: true, want: "1 added", verified: 1, read: true}, {f: signed, want: "1 updated", verified: 1, textOnly: true}},
		"another file":                {{f: f, verify: true, want: "1 added", verified: 1, read: true}, {f: both, verify: true, want: "1 updated", verified: 1, read: true}},
		"another file, unverified":    {{f: f, verify: true, want: "1 added", verified: 1, read: true}, {f: both, want: "1 updated"}},
		"another file of unverified":  {{f: f, want: "1 added"}, {f: both, verify: true, want: "1 updated", read: true}},
		"replaced":                    {{f: f, verify: true, want: "1 added", verified: 1, read: true}, {f: rebuilt, verify: true, want: "1 replaced", verified: 2, read: true}},
		"replaced by unverified":      {{f: f, verify: true, want: "1 added", verified: 1, read: true}, {f: rebuilt, want: "1 replaced"}},
		"lost, and verified again":    {{f: f, want: "1 added"}, {f: f, verify: true, want: "1 completed", verified: 2, read: true, lose: true}},
		"one of two lost":             {{f: both, verify: true, want: "1 added", verified: 1, read: true}, {f: both, verify: true, want: "1 completed", verified: 1, read: true, lose: true}},
		"all of the text's are known": {{f: both, verify: true, want: "1 added", verified: 1, read: true}, {f: f, verify: true, want: "1 updated", verified: 1}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := memoryPlace(t)
			start := time.Unix(1_700_000_000, 0).UTC()
			now := start
			s := p.openTestAs(t, nil, storage.Options{Now: func() time.Time { return now }})
			for i, step := range steps {
				now = start.Add(time.Duration(i+1) * time.Hour)
				if step.lose {
					if err := os.Remove(filepath.Join(p.store, step.f.name())); err != nil {
						t.Fatal(err)
					}
				}
				to, read, unverified := s, int64(0), 0
				options := importer.Options{Replace: true, Verifying: func(bytes int64) { read += bytes }}
				if step.verify {
					options.Decode = decode
				}
				if step.textOnly {
					to = p.openIndexOnly(t)
				}
				results := importAll(t, to, options, laid(t, step.f))
				wantOutcomes(t, results, step.want)
				for _, r := range results {
					unverified += r.Unverified
				}
				item, err := s.Item(t.Context(), f.hash())
				if err != nil {
					t.Fatal(err)
				}
				want := time.Time{}
				if step.verified > 0 {
					want = start.Add(time.Duration(step.verified) * time.Hour)
				}
				if !item.VerifiedAt.Equal(want) {
					t.Errorf("step %d: verified at %v, want %v", i, item.VerifiedAt, want)
				}
				if (read > 0) != step.read {
					t.Errorf("step %d: %d bytes were read", i, read)
				}
				if adds := step.want == "1 added" || step.want == "1 replaced"; adds && (unverified == 0) != step.verify {
					t.Errorf("step %d: %d unverified", i, unverified)
				}
			}
		})
	}
}

// TestImportChanging: files change while they are verified. What is stored was verified.
func TestImportChanging(t *testing.T) {
	t.Parallel()
	nar := strings.Repeat("a nar that takes many reads. ", 40_000)
	f := fake{n: 1, nar: nar, kind: "none", content: nar}
	for name, offset := range map[string]int64{"what was read": 10, "what was not read yet": int64(len(nar) - 10)} {
		for layout, layOut := range layouts {
			t.Run(name+"/"+layout, func(t *testing.T) {
				t.Parallel()
				p := newPlace(t)
				s := p.openTest(t)
				source := t.TempDir()
				file, options := layOut(t, p, source, f)
				changed := false
				options.Decode = decode
				options.Verifying = func(int64) {
					if changed {
						return
					}
					changed = true
					writer, err := os.OpenFile(file, os.O_WRONLY, 0)
					if err == nil {
						_, err = writer.WriteAt([]byte("X"), offset)
						err = errors.Join(err, writer.Close(), os.Chtimes(file, time.Time{}, time.Now().Add(time.Minute)))
					}
					if err != nil {
						t.Error(err)
					}
				}
				results := importAll(t, s, options, source)
				item, err := s.Item(t.Context(), f.hash())
				switch {
				case layout == "moved" && offset == 10:
					// Only this user can still write to it.
				case layout == "copied" && offset == 10:
					wantOutcomes(t, results, "1 added")
					wantServed(t, s, f)
				case !errors.Is(err, storage.ErrNotFound):
					t.Errorf("%+v, %v; %v", item, err, results)
				default:
					wantOutcomes(t, results, "1 failed")
				}
			})
		}
	}
}

// TestImportInterrupted: an import that is cancelled while it verifies leaves everything as it
// was.
func TestImportInterrupted(t *testing.T) {
	t.Parallel()
	nar := strings.Repeat("a nar that takes many reads. ", 400_000)
	f := fake{n: 1, nar: nar, kind: "none", content: nar}
	for layout, layOut := range layouts {
		t.Run(layout, func(t *testing.T) {
			t.Parallel()
			p := newPlace(t)
			s := p.openTest(t)
			source := t.TempDir()
			file, options := layOut(t, p, source, f)
			ctx, cancel := context.WithCancel(t.Context())
			read := int64(0)
			options.Decode = decode
			options.Verifying = func(bytes int64) { read += bytes; cancel() }
			err := importer.New(s).Import(ctx, []string{source}, options, func(i importer.Imported) {
				if !errors.Is(i.Err, context.Canceled) {
					t.Errorf("%v, %v", i.Outcome, i.Err)
				}
			})
			if !errors.Is(err, context.Canceled) || read > 1<<20 {
				t.Errorf("%v, after %d bytes", err, read)
			}
			if !has(file, f.content) {
				t.Error("the source was changed or removed")
			}
			if layout != "stored" {
				wantFindings(t, s)
			}
			options.Verifying = nil
			wantOutcomes(t, importAll(t, s, options, source), "1 added")
			wantServed(t, s, f)
			wantFindings(t, s)
		})
	}
}

// TestImportUnreadable: a file that this program can't decompress is refused, unless it need
// not be verified.
func TestImportUnreadable(t *testing.T) {
	t.Parallel()
	f := fake{n: 1, nar: "a nar", kind: "brotli", content: "who knows"}
	for layout, layOut := range layouts {
		p := newPlace(t)
		s := p.openTest(t)
		source := t.TempDir()
		file, options := layOut(t, p, source, f)
		options.Decode = decode
		results := importAll(t, s, options, source)
		wantOutcomes(t, results, "1 failed")
		for _, r := range results {
			if !errors.Is(r.Err, narcheck.ErrUnreadable) || !strings.Contains(r.Err.Error(), "--no-verify") {
				t.Errorf("%s: %v", layout, r.Err)
			}
		}
		if !has(file, f.content) {
			t.Errorf("%s: the source was changed or removed", layout)
		}
		options.Decode = nil
		results = importAll(t, s, options, source)
		wantOutcomes(t, results, "1 added")
		for _, r := range results {
			if r.Unverified != 1 {
				t.Errorf("%s: %d unverified", layout, r.Unverified)
			}
		}
		wantServed(t, s, f)
		if sums, err := s.Index().Verification(t.Context()); err != nil || sums != (index.Verification{Never: 1}) {
			t.Errorf("%s: %+v, %v", layout, sums, err)
		}
	}
}

// TestImportFailedReplacement: an item whose nar could not be replaced stays verified.
func TestImportFailedReplacement(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	s := p.openTest(t)
	f := genuine(t, 1, "none")
	wantOutcomes(t, importAll(t, s, importer.Options{Decode: decode}, laid(t, f)), "1 added")
	before, err := s.Item(t.Context(), f.hash())
	if err != nil {
		t.Fatal(err)
	}
	rebuilt := f
	rebuilt.nar, rebuilt.content = strings.ToUpper(f.nar), strings.ToUpper(f.content)
	wrong := rebuilt
	wrong.content = strings.ToTitle(f.content[:10]) + f.content[10:]
	wantOutcomes(t, importAll(t, s, importer.Options{Decode: decode, Replace: true}, laid(t, wrong)), "1 failed")
	rebuilt.refs = []int{999}
	wantOutcomes(t, importAll(t, s, importer.Options{Decode: decode, Replace: true, WithReferences: true}, laid(t, rebuilt)), "1 failed")
	after, err := s.Item(t.Context(), f.hash())
	if err != nil || !after.VerifiedAt.Equal(before.VerifiedAt) || before.VerifiedAt.IsZero() {
		t.Errorf("verified at %v, then %v, %v", before.VerifiedAt, after.VerifiedAt, err)
	}
	wantServed(t, s, f)
	wantFindings(t, s)
}

// TestVerifiedAtElsewhere: what else makes items verified, and what doesn't.
func TestVerifiedAtElsewhere(t *testing.T) {
	t.Parallel()
	f := genuine(t, 1, "gzip")
	start := time.Unix(1_700_000_000, 0).UTC()
	for name, test := range map[string]struct {
		do       func(t *testing.T, p place, s *storage.Storage, item *storage.Item) error
		verified bool
	}{
		"received": {func(t *testing.T, _ place, s *storage.Storage, item *storage.Item) error {
			file := filepath.Join(t.TempDir(), "nar")
			write(t, file, f.content)
			opened, err := os.Open(file)
			if err != nil {
				return err
			}
			defer opened.Close()
			return s.Receive(t.Context(), item, 0, opened)
		}, true},
		"adopted": {func(t *testing.T, p place, s *storage.Storage, item *storage.Item) error {
			layNars(t, p.store, f)
			return s.Adopt(t.Context(), item, 0, decode)
		}, true},
		"recounted": {func(t *testing.T, p place, s *storage.Storage, _ *storage.Item) error {
			layNars(t, p.store, f)
			_, err := recount.Claims(t.Context(), s, func() {})
			return err
		}, false},
		"recorded by a repair": {func(t *testing.T, p place, s *storage.Storage, _ *storage.Item) error {
			layNars(t, p.store, f)
			return repairAll(t, s)
		}, true},
		"unverified, then checked": {func(t *testing.T, p place, s *storage.Storage, _ *storage.Item) error {
			wantOutcomes(t, importAll(t, s, importer.Options{}, laid(t, f)), "1 completed")
			if found := verified(t, s, check.VerifyOptions{}); len(found) > 0 {
				t.Errorf("found %q", found)
			}
			return nil
		}, true},
		"wrong, and checked": {func(t *testing.T, p place, s *storage.Storage, _ *storage.Item) error {
			wrong := f
			wrong.content = f.content[:len(f.content)-1] + "\xff"
			wantOutcomes(t, importAll(t, s, importer.Options{}, laid(t, wrong)), "1 completed")
			if found := verified(t, s, check.VerifyOptions{}); len(found) != 1 {
				t.Errorf("found %q", found)
			}
			return nil
		}, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPlace(t)
			importAll(t, p.openIndexOnly(t), importer.Options{}, laid(t, f))
			s := p.openTestAs(t, nil, storage.Options{Now: func() time.Time { return start }})
			item, err := s.Item(t.Context(), f.hash())
			if err == nil {
				err = test.do(t, p, s, item)
			}
			if err != nil {
				t.Fatal(err)
			}
			item, err = s.Item(t.Context(), f.hash())
			want := time.Time{}
			if test.verified {
				want = start
			}
			if err != nil || item.Stored == 0 || !item.VerifiedAt.Equal(want) {
				t.Errorf("stored %b, verified at %v, want %v; %v", item.Stored, item.VerifiedAt, want, err)
			}
		})
	}
}

// repairAll repairs what a comparison finds, without sources.
func repairAll(t *testing.T, s *storage.Storage) error {
	t.Helper()
	checker := check.New(s)
	repairer := checker.Repairer(check.RepairOptions{Decode: decode})
	for finding, err := range checker.Compare(t.Context(), nil) {
		if err == nil {
			err = repairer.Repair(t.Context(), finding).Err
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// TestVerifyClock: times of verification in the future, before the clock was set back, don't
// make a pass skip items.
func TestVerifyClock(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	now := time.Now()
	s := p.openTestAs(t, nil, storage.Options{Now: func() time.Time { return now }})
	f := genuine(t, 1, "gzip")
	wantOutcomes(t, importAll(t, s, importer.Options{Decode: decode}, laid(t, f)), "1 added")
	now = now.Add(-365 * 24 * time.Hour)
	read := int64(0)
	if found := verified(t, s, check.VerifyOptions{Looked: func(bytes int64) { read += bytes }}); len(found) > 0 || read == 0 {
		t.Errorf("found %q, %d bytes read", found, read)
	}
	if item, err := s.Item(t.Context(), f.hash()); err != nil || !item.VerifiedAt.Equal(now.Truncate(time.Millisecond)) {
		t.Errorf("verified at %v, want %v; %v", item.VerifiedAt, now, err)
	}
}

// TestImportOtherCompression: a known file is verified again if a new narinfo claims that it has
// another compression.
func TestImportOtherCompression(t *testing.T) {
	t.Parallel()
	s := newPlace(t).openTest(t)
	f := genuine(t, 1, "lzip")
	options := importer.Options{Decode: decode}
	wantOutcomes(t, importAll(t, s, options, laid(t, f)), "1 added")
	lies := f
	lies.kind, lies.url = "zstd", f.name()
	source := t.TempDir()
	write(t, filepath.Join(source, f.hash().String()+".narinfo"), lies.text())
	wantOutcomes(t, importAll(t, s, options, source), "1 failed")
	wantServed(t, s, f)
}
