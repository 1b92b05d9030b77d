package storage_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"nar-herder/narinfo"
	"nar-herder/storage"
	"nar-herder/storage/check"
	"nar-herder/storage/directory"
	"nar-herder/storage/importer"
	"nar-herder/storage/index"
)

// source is a check.Source for tests.
type source struct {
	name string
	// give returns the reader for a file with the given right content.
	give  func(content string) (io.Reader, error)
	items []fake
}

func (s source) String() string { return s.name }

func (s source) Narinfo(_ context.Context, hash narinfo.PathHash) ([]byte, error) {
	for _, f := range s.items {
		if f.hash() == hash {
			return []byte(f.text()), nil
		}
	}
	return nil, storage.ErrNotFound
}

func (s source) Fetch(_ context.Context, item *storage.Item, n int) (io.ReadCloser, error) {
	for _, f := range s.items {
		if f.hash() == item.Hash {
			reader, err := s.give(f.files()[n].content)
			if err != nil {
				return nil, err
			}
			return io.NopCloser(reader), nil
		}
	}
	return nil, storage.ErrNotStored
}

func giving(content string) (io.Reader, error) { return strings.NewReader(content), nil }

// badSources are sources with wrong files.
var badSources = map[string]func(content string) (io.Reader, error){
	"not there": func(string) (io.Reader, error) { return nil, storage.ErrNotStored },
	"down":      func(string) (io.Reader, error) { return nil, syscall.ECONNREFUSED },
	"garbage":   func(content string) (io.Reader, error) { return giving(strings.Repeat("g", len(content))) },
	"flipped":   func(content string) (io.Reader, error) { return giving(content[:len(content)-1] + "\xff") },
	"truncated": func(content string) (io.Reader, error) { return giving(content[:len(content)/2]) },
	"longer":    func(content string) (io.Reader, error) { return giving(content + "x") },
	"nothing":   func(string) (io.Reader, error) { return giving("") },
	"cut": func(content string) (io.Reader, error) {
		return io.MultiReader(strings.NewReader(content[:len(content)/2]), failing{io.ErrUnexpectedEOF}), nil
	},
	"cut at the end": func(content string) (io.Reader, error) {
		return io.MultiReader(strings.NewReader(content), failing{syscall.ECONNRESET}), nil
	},
}

// unsureSources are those that may have the nar anyway.
var unsureSources = map[string]bool{"down": true, "cut": true, "cut at the end": true}

// allFindings returns the findings of all passes, as "kind name".
func allFindings(t testing.TB, s *storage.Storage) (found []check.Finding) {
	t.Helper()
	gather := func(finding check.Finding, err error) {
		if err != nil {
			t.Fatal(err)
		}
		found = append(found, finding)
	}
	for finding, err := range check.New(s).Compare(t.Context(), nil) {
		gather(finding, err)
	}
	for finding, err := range check.New(s).Verify(t.Context(), check.VerifyOptions{Decode: decode}) {
		gather(finding, err)
	}
	return found
}

func wantAllFindings(t testing.TB, s *storage.Storage, want ...string) {
	t.Helper()
	got := []string{}
	for _, finding := range allFindings(t, s) {
		got = append(got, finding.Kind.String()+" "+finding.Name)
	}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("found %q, want %q", got, want)
	}
}

// old makes a file as old as a leftover.
func old(t testing.TB, file string) {
	t.Helper()
	then := time.Now().Add(-48 * time.Hour)
	if err := os.Chtimes(file, then, then); err != nil {
		t.Fatal(err)
	}
}

// damages are ways to damage an item's file.
var damages = map[string]func(t testing.TB, file, content string){
	"missing": func(t testing.TB, file, _ string) {
		if err := os.Remove(file); err != nil {
			t.Fatal(err)
		}
	},
	"short":   func(t testing.TB, file, content string) { write(t, file, content[:len(content)/2]) },
	"empty":   func(t testing.TB, file, _ string) { write(t, file, "") },
	"long":    func(t testing.TB, file, content string) { write(t, file, content+"more") },
	"corrupt": func(t testing.TB, file, content string) { write(t, file, content[:len(content)-1]+"\xff") },
}

// TestRepair repairs each damage from each source.
func TestRepair(t *testing.T) {
	t.Parallel()
	sources := map[string][]func(string) (io.Reader, error){"good": {giving}, "none": {}}
	for name, bad := range badSources {
		sources[name] = []func(string) (io.Reader, error){bad}
		sources[name+", good"] = []func(string) (io.Reader, error){bad, giving}
	}
	for damage, harm := range damages {
		for name, gives := range sources {
			t.Run(damage+"/"+name, func(t *testing.T) {
				t.Parallel()
				p := memoryPlace(t)
				s := p.openTest(t)
				f, other := genuine(t, 1, "zstd"), genuine(t, 2, "gzip")
				lzip := fake{kind: "lzip", content: compressed(t, "lzip", f.nar)}
				f.extra = []fake{lzip}
				importAll(t, s, importer.Options{}, laid(t, f, other))
				file := filepath.Join(p.store, f.name())
				harm(t, file, f.content)
				wrong, _ := os.ReadFile(file)

				var from []check.Source
				for i, give := range gives {
					from = append(from, source{fmt.Sprint("source ", i), give, []fake{f, other}})
				}
				repairer := check.New(s).Repairer(check.RepairOptions{Decode: decode, Sources: from})
				found := allFindings(t, s)
				if len(found) != 1 || found[0].Name != f.name() {
					t.Fatalf("found %+v", found)
				}
				repair := repairer.Repair(t.Context(), found[0])
				if unsureSources[name] {
					if repair.Outcome != check.Untouched || repair.Err == nil || repair.Quarantined != "" || !strings.Contains(repair.Note, "source 0: ") {
						t.Errorf("%+v", repair)
					}
					wantAllFindings(t, s, found[0].Kind.String()+" "+f.name())
					wantServed(t, s, other)
					return
				}
				if repair.Err != nil {
					t.Errorf("error %v", repair.Err)
				}
				quarantine := "quarantine/" + f.name()
				var left []string
				if damage != "missing" {
					left = []string{"quarantined " + quarantine}
					if repair.Quarantined != quarantine {
						t.Errorf("%+v", repair)
					}
					if !has(filepath.Join(p.store, quarantine), string(wrong)) {
						t.Error("the wrong file is not in quarantine")
					}
				}
				wantAllFindings(t, s, left...)
				wantServed(t, s, other)
				if name == "good" || strings.HasSuffix(name, ", good") {
					wantServed(t, s, f)
					if repair.Outcome != check.Fetched || !repair.Mended || repair.Bytes != int64(len(f.content)) ||
						repair.Note != fmt.Sprint("from source ", len(gives)-1) {
						t.Errorf("%+v", repair)
					}
					return
				}
				if _, err := stored(s, f.hash(), 0); !errors.Is(err, storage.ErrNotStored) {
					t.Errorf("%v, want ErrNotStored", err)
				}
				if content, err := stored(s, f.hash(), 1); err != nil || content != lzip.content {
					t.Errorf("the other file: %v", err)
				}
				want := check.SetAside
				if damage == "missing" {
					want = check.Unclaimed
				}
				if repair.Outcome != want || repair.Mended || name != "none" && !strings.Contains(repair.Note, "source 0: ") {
					t.Errorf("%+v", repair)
				}
				if !gone(file) {
					t.Error("a file is left")
				}
			})
		}
	}
}

// TestRepairUnrecorded: files that the index does not have as stored.
func TestRepairUnrecorded(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		content func(good string) string
		young   bool
		sized   bool
		outcome check.RepairOutcome
	}{
		"good":            {func(good string) string { return good }, true, true, check.Recorded},
		"good, no size":   {func(good string) string { return good }, true, false, check.Recorded},
		"short":           {func(good string) string { return good[1:] }, false, true, check.SetAside},
		"short, no size":  {func(good string) string { return good[:9] }, false, false, check.SetAside},
		"corrupt":         {func(good string) string { return good[:len(good)-1] + "\xff" }, false, true, check.SetAside},
		"young and short": {func(good string) string { return good[:9] }, true, true, check.Untouched},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPlace(t)
			f := genuine(t, 1, "gzip")
			if !test.sized {
				f.claim = -1
			}
			importAll(t, p.openIndexOnly(t), importer.Options{}, laid(t, f))
			s := p.openTest(t)
			file, content := filepath.Join(p.store, f.name()), test.content(f.content)
			write(t, file, content)
			if !test.young {
				old(t, file)
			}
			found := allFindings(t, s)
			if len(found) != 1 || found[0].Kind != check.Unrecorded {
				t.Fatalf("found %+v", found)
			}
			repair := check.New(s).Repairer(check.RepairOptions{Decode: decode}).Repair(t.Context(), found[0])
			if repair.Outcome != test.outcome || repair.Mended != (test.outcome != check.Untouched) || (repair.Err != nil) != (test.outcome == check.Untouched) {
				t.Errorf("%+v", repair)
			}
			switch test.outcome {
			case check.Recorded:
				wantServed(t, s, f)
				wantAllFindings(t, s)
			case check.SetAside:
				wantAllFindings(t, s, "quarantined quarantine/"+f.name())
				if !has(filepath.Join(p.store, "quarantine", f.name()), content) || !gone(file) {
					t.Error("it is not in quarantine")
				}
			default:
				wantAllFindings(t, s, "unrecorded "+f.name())
			}
		})
	}
}

// TestRepairLeaves: findings that must stay unchanged.
func TestRepairLeaves(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	bytes, err := directory.Open(p.store)
	if err != nil {
		t.Fatal(err)
	}
	defer bytes.Close()
	x, err := index.Open(t.Context(), p.database, index.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer x.Close()
	now := time.Now()
	s := storage.New(x, bytes, storage.Options{Now: func() time.Time { return now }})
	importAll(t, s, importer.Options{}, laid(t, genuine(t, 1, "gzip")))
	if _, err := s.Identity(t.Context()); err != nil { // is not an unreferenced file
		t.Fatal(err)
	}
	left := filepath.Join(p.store, "nar/gzip/.nar-herder-LEFT")
	for _, name := range []string{"README", "quarantine/old", "nar/gzip/" + fake{n: 9}.path().BaseName()} {
		write(t, filepath.Join(p.store, name), "x")
		old(t, filepath.Join(p.store, name))
	}
	write(t, left, "left")
	old(t, left) // like a link to an old file, made just now
	repairAll := func(want map[string]check.RepairOutcome) {
		t.Helper()
		got := map[string]check.RepairOutcome{}
		for _, finding := range allFindings(t, s) {
			if !finding.IsNotice() {
				t.Errorf("%v %s", finding.Kind, finding.Name)
			}
			repair := check.New(s).Repairer(check.RepairOptions{Decode: decode}).Repair(t.Context(), finding)
			if repair.Err != nil {
				t.Error(repair.Err)
			}
			got[finding.Kind.String()+" "+filepath.Base(finding.Name)] = repair.Outcome
		}
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("%v, want %v", got, want)
		}
	}
	want := map[string]check.RepairOutcome{
		"stranger README": check.Untouched, "quarantined old": check.Untouched,
		"stranger " + fake{n: 9}.path().BaseName(): check.Untouched, "temporary .nar-herder-LEFT": check.Untouched,
	}
	repairAll(want)
	if !has(left, "left") {
		t.Error("a new temporary file was removed")
	}
	now = now.Add(25 * time.Hour)
	want["temporary .nar-herder-LEFT"] = check.Deleted
	repairAll(want)
	if !gone(left) {
		t.Error("an old temporary file is left")
	}
	delete(want, "temporary .nar-herder-LEFT")
	repairAll(want)
}

// TestRepairMeanwhile: a repair leaves what others have changed since the finding.
func TestRepairMeanwhile(t *testing.T) {
	t.Parallel()
	for damage, harm := range damages {
		for _, from := range []string{"good", "none"} {
			p := memoryPlace(t)
			s := p.openTest(t)
			f := genuine(t, 1, "zstd")
			importAll(t, s, importer.Options{}, laid(t, f, genuine(t, 2, "gzip")))
			file := filepath.Join(p.store, f.name())
			harm(t, file, f.content)
			options := check.RepairOptions{Decode: decode}
			if from == "good" {
				options.Sources = []check.Source{source{"good", giving, []fake{f}}}
			}
			found := allFindings(t, s)
			// An administrator restores the file.
			write(t, file, f.content)
			if repair := check.New(s).Repairer(options).Repair(t.Context(), found[0]); repair.Outcome != check.Untouched || repair.Err == nil || repair.Mended {
				t.Errorf("%s: %+v", damage, repair)
			}
			wantServed(t, s, f)
			// The item is removed.
			if _, err := s.Remove(t.Context(), f.hash()); err != nil {
				t.Fatal(err)
			}
			if repair := check.New(s).Repairer(options).Repair(t.Context(), found[0]); repair.Outcome != check.Untouched || repair.Err == nil {
				t.Errorf("%s: %+v", damage, repair)
			}
			for _, finding := range allFindings(t, s) {
				if finding.Kind != check.Quarantined {
					t.Errorf("%s: then there is: %v %s", damage, finding.Kind, finding.Name)
				}
			}
		}
	}
}

// TestRepairUnmounted: if all files seem to be missing, no row is unclaimed.
func TestRepairUnmounted(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	items := many(5, nil)
	importAll(t, p.openTest(t), importer.Options{}, laid(t, items...))
	if err := errors.Join(os.Rename(p.store, p.store+"-away"), os.Mkdir(p.store, 0o755)); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(p.store, "stranger"), "x")
	s := p.openTest(t) // like a process that begins then
	repairer := check.New(s).Repairer(check.RepairOptions{Decode: decode})
	missing := 0
	for finding, err := range check.New(s).Compare(t.Context(), nil) {
		if err != nil {
			t.Fatal(err)
		}
		if finding.Kind != check.Missing {
			continue
		}
		missing++
		if repair := repairer.Repair(t.Context(), finding); repair.Outcome != check.Untouched || repair.Err == nil || !strings.Contains(repair.Err.Error(), "mounted") {
			t.Errorf("%+v", repair)
		}
	}
	if missing != len(items) {
		t.Errorf("%d are missing", missing)
	}
	if err := errors.Join(os.RemoveAll(p.store), os.Rename(p.store+"-away", p.store)); err != nil {
		t.Fatal(err)
	}
	s = p.openTest(t)
	for _, f := range items {
		wantServed(t, s, f)
	}
}

// TestRepairUnstored: a repair fetches the nars of items that the index does not have as
// stored, such as those that an earlier repair unclaimed.
func TestRepairUnstored(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	s := p.openTest(t)
	f, other, partial := genuine(t, 1, "zstd"), genuine(t, 2, "gzip"), genuine(t, 3, "zstd")
	partial.extra = []fake{{kind: "lzip", content: compressed(t, "lzip", partial.nar)}}
	importAll(t, s, importer.Options{}, laid(t, f, other, partial))
	for _, name := range []string{f.name(), partial.name()} {
		if err := os.Remove(filepath.Join(p.store, name)); err != nil {
			t.Fatal(err)
		}
	}
	repair := func(found []check.Finding, gives ...func(string) (io.Reader, error)) (repairs []check.Repair) {
		t.Helper()
		options := check.RepairOptions{Decode: decode}
		for _, give := range gives {
			options.Sources = append(options.Sources, source{"source", give, []fake{f, other, partial}})
		}
		for _, finding := range found {
			repairs = append(repairs, check.New(s).Repairer(options).Repair(t.Context(), finding))
		}
		return repairs
	}
	unstored := func(options check.UnstoredOptions) (found []check.Finding) {
		t.Helper()
		for finding, err := range check.New(s).CheckUnstored(t.Context(), options, nil) {
			if err != nil {
				t.Fatal(err)
			}
			found = append(found, finding)
		}
		slices.SortFunc(found, func(a, b check.Finding) int { return strings.Compare(a.Note, b.Note) })
		return found
	}
	if found := unstored(check.UnstoredOptions{}); len(found) > 0 {
		t.Errorf("before: %+v", found)
	}
	repair(allFindings(t, s), badSources["not there"])
	found := unstored(check.UnstoredOptions{})
	if len(found) != 1 || found[0].Kind != check.Unstored || found[0].Item.Hash != f.hash() || found[0].IsNotice() {
		t.Fatalf("found %+v", found)
	}
	if all := unstored(check.UnstoredOptions{Elsewhere: true}); len(all) > 0 {
		t.Errorf("with a peer: %+v", all)
	}
	if done := repair(found, badSources["down"]); done[0].Outcome != check.Untouched || done[0].Err == nil || done[0].Mended {
		t.Errorf("%+v", done)
	}
	if found = unstored(check.UnstoredOptions{Partial: true}); len(found) != 2 || !found[1].IsNotice() {
		t.Fatalf("found %+v", found)
	}
	for n, done := range repair(found, badSources["not there"], giving) {
		want := int64(len(f.content))
		if n == 1 {
			want = int64(len(partial.content))
		}
		if done.Outcome != check.Fetched || !done.Mended || done.Err != nil || done.Bytes != want {
			t.Errorf("%+v", done)
		}
	}
	wantServed(t, s, f)
	wantServed(t, s, partial)
	if found := unstored(check.UnstoredOptions{Partial: true}); len(found) > 0 {
		t.Errorf("then: %+v", found)
	}
	// The row has changed since the finding.
	if done := repair(found, giving); done[0].Outcome != check.Untouched {
		t.Errorf("again: %+v", done)
	}
}
