package transfer_test

import (
	"context"
	"errors"
	"io"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"nar-herder/storage/bytestore"
	"nar-herder/storage/directory"
	"nar-herder/storage/transfer"
)

func TestCopy(t *testing.T) {
	t.Parallel()
	const (
		copied, there, wrong, differs = transfer.Copied, transfer.There, transfer.Wrong, transfer.Differs
	)
	nars := some(3)
	a, b, c := name(0), name(1), name(2)
	tests := []struct {
		what     string
		from, to files
		items    items
		set      func(*transfer.Copy)
		want     map[string]transfer.Outcome
		result   files // nil: the files of both, the target's first
		verified int64
	}{
		{"all", nars, nil, nil, nil, map[string]transfer.Outcome{a: copied, b: copied, c: copied}, nil, 0},
		{"verified", nars, nil, itemsOf(t, nars), nil, map[string]transfer.Outcome{a: copied, b: copied, c: copied}, nil, 3},
		{"the rest", nars, files{b: nars[b]}, nil, nil, map[string]transfer.Outcome{a: copied, b: there, c: copied}, nil, 0},
		{"all there", nars, nars, itemsOf(t, nars), nil, map[string]transfer.Outcome{a: there, b: there, c: there}, nil, 0},
		{"nothing", nil, nars, nil, nil, map[string]transfer.Outcome{}, nil, 0},
		{"private files stay", files{
			a: nars[a], bytestore.IdentityName: "ours", "nar-herder-owner": "us", "quarantine/" + b: "bad", "nar/.nar-herder-LEFT": "lef",
			".nar-herder-spool/" + b: "part", "nar/nar-herder-copy-LEFT": "probe\n", "empty": "",
		}, nil, nil, nil, map[string]transfer.Outcome{a: copied, "empty": copied}, files{a: nars[a], "empty": ""}, 0},
		{"a dry run", nars, files{b: nars[b]}, itemsOf(t, nars), func(c *transfer.Copy) { c.DryRun = true },
			map[string]transfer.Outcome{a: copied, b: there, c: copied}, files{b: nars[b]}, 0},
		{"shorter in the target, without an item", nars, files{a: "cut"}, nil, nil,
			map[string]transfer.Outcome{a: differs, b: copied, c: copied}, nil, 0},
		{"shorter in the target, with an item", nars, files{a: "cut"}, itemsOf(t, nars), nil,
			map[string]transfer.Outcome{a: copied, b: copied, c: copied}, nars, 3},
		{"shorter in the target, with Replace", nars, files{a: "cut"}, nil, func(c *transfer.Copy) { c.Replace = true },
			map[string]transfer.Outcome{a: copied, b: copied, c: copied}, nars, 0},
		{"shorter in the source, and complete in the target", files{a: "cut"}, nars, itemsOf(t, nars), nil,
			map[string]transfer.Outcome{a: there}, nil, 0},
		{"shorter in the source", files{a: "cut"}, nil, itemsOf(t, nars), func(c *transfer.Copy) { c.Replace = true },
			map[string]transfer.Outcome{a: wrong}, files{}, 0},
		{"shorter in both", files{a: "cut"}, files{a: "cut"}, itemsOf(t, nars), nil, map[string]transfer.Outcome{a: wrong}, nil, 0},
		{"corrupt", files{a: strings.ToUpper(nars[a]), b: nars[b]}, nil, itemsOf(t, nars), func(c *transfer.Copy) { c.Replace = true },
			map[string]transfer.Outcome{a: wrong, b: copied}, files{b: nars[b]}, 1},
		{"in an unknown compression", files{a: "compressed"}, nil, items{a: itemOf(t, a, "odd", "nar", 10)}, nil,
			map[string]transfer.Outcome{a: copied}, nil, 0},
		{"in an unknown compression, and shorter", files{a: "cut"}, nil, items{a: itemOf(t, a, "odd", "nar", 10)}, nil,
			map[string]transfer.Outcome{a: wrong}, files{}, 0},
		{"strangers", files{"README": "text", "nar/odd": "text"}, nil, itemsOf(t, nars), nil,
			map[string]transfer.Outcome{"README": copied, "nar/odd": copied}, nil, 0},
		{"same size in the target", nars, files{a: strings.ToUpper(nars[a]), b: nars[b], c: nars[c]}, nil, nil,
			map[string]transfer.Outcome{a: there, b: there, c: there}, nil, 0},
		{"same size in the target, with Compare", nars, files{a: strings.ToUpper(nars[a]), b: nars[b]}, nil, func(c *transfer.Copy) { c.Compare = true },
			map[string]transfer.Outcome{a: differs, b: there, c: copied}, nil, 0},
		{"compared, and the source is right", nars, files{a: strings.ToUpper(nars[a])}, itemsOf(t, nars), func(c *transfer.Copy) { c.Compare = true },
			map[string]transfer.Outcome{a: copied, b: copied, c: copied}, nars, 3},
		{"compared, and the source is wrong", files{a: strings.ToUpper(nars[a])}, files{a: nars[a]}, itemsOf(t, nars), func(c *transfer.Copy) { c.Compare = true },
			map[string]transfer.Outcome{a: wrong}, nil, 0},
		{"compared in a dry run", nars, files{a: strings.ToUpper(nars[a])}, itemsOf(t, nars), func(c *transfer.Copy) { c.Compare, c.DryRun = true, true },
			map[string]transfer.Outcome{a: copied, b: copied, c: copied}, files{a: strings.ToUpper(nars[a])}, 0},
	}
	for _, test := range tests {
		t.Run(test.what, func(t *testing.T) {
			t.Parallel()
			from, source := opened(t, test.from)
			to, target := opened(t, test.to)
			job := &transfer.Copy{From: from, To: to}
			if test.items != nil {
				job.Items, job.Decode = test.items, decode
			}
			if test.set != nil {
				test.set(job)
			}
			got, summary, err := run(t, job)
			if err != nil || !maps.Equal(got.outcomes, test.want) {
				t.Errorf("%v, %v; want %v", got, err, test.want)
			}
			complete := true
			for _, outcome := range test.want {
				complete = complete && (outcome == copied || outcome == there)
			}
			if summary.Complete() != complete || summary.Verified != test.verified {
				t.Errorf("%+v", summary)
			}
			want := test.result
			if want == nil {
				want = maps.Clone(test.from)
				if want == nil {
					want = files{}
				}
				maps.Copy(want, test.to)
			}
			wantFiles(t, target, want)
			if test.from == nil {
				test.from = files{}
			}
			wantFiles(t, source, test.from)
		})
	}
}

// run runs a copy with the test's context.
func run(t *testing.T, c *transfer.Copy) (results, transfer.Summary, error) {
	t.Helper()
	return copied(t, t.Context(), c)
}

// TestReplaced counts replaced files and their bytes.
func TestReplaced(t *testing.T) {
	t.Parallel()
	from, _ := opened(t, some(2))
	to, _ := opened(t, files{name(0): "cut"})
	_, summary, err := run(t, &transfer.Copy{From: from, To: to, Replace: true})
	want := int64(len(some(2)[name(0)]) + len(some(2)[name(1)]))
	if err != nil || summary.Replaced != 1 || summary.Files[transfer.Copied] != 2 || summary.Bytes[transfer.Copied] != want {
		t.Errorf("%+v, %v", summary, err)
	}
}

// TestSame refuses one storage under two names, and leaves nothing in it.
func TestSame(t *testing.T) {
	t.Parallel()
	from, where := opened(t, some(2))
	other := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(where, other); err != nil {
		t.Fatal(err)
	}
	to, err := directory.Open(other)
	if err != nil {
		t.Fatal(err)
	}
	defer to.Close()
	_, summary, err := run(t, &transfer.Copy{From: from, To: to})
	if !errors.Is(err, transfer.ErrSame) || !strings.Contains(err.Error(), other) || !strings.Contains(err.Error(), where) {
		t.Errorf("%+v, %v", summary, err)
	}
	wantFiles(t, where, some(2))
}

// TestSharedIdentity detects a copy that includes the identity of its original.
func TestSharedIdentity(t *testing.T) {
	t.Parallel()
	tests := []struct{ from, to, want string }{
		{"", "", ""}, {"one", "", ""}, {"", "one", ""}, {"one", "two", ""}, {"one", "one", "one"},
	}
	for _, test := range tests {
		stores := [2]files{{}, {}}
		for i, id := range []string{test.from, test.to} {
			if id != "" {
				stores[i][bytestore.IdentityName] = id + "\n"
			}
		}
		from, _ := opened(t, stores[0])
		to, _ := opened(t, stores[1])
		if got, err := (&transfer.Copy{From: from, To: to}).SharedIdentity(t.Context()); got != test.want || err != nil {
			t.Errorf("%+v: %q, %v", test, got, err)
		}
	}
}

// TestOrder: every visible file is synced in the end, and existing ones are flushed, as a
// previous run may have been killed in between.
func TestOrder(t *testing.T) {
	t.Parallel()
	const count = 2500
	nars := some(count)
	from, _ := opened(t, nars)
	there := files{}
	for n := range 100 {
		there[name(n)] = nars[name(n)]
	}
	disk, target := opened(t, there)
	var last string
	to := &hooked{Store: disk}
	to.hook = func(call, name string) error {
		to.mu.Lock()
		defer to.mu.Unlock()
		if call == "commit" || call == "flush" || call == "sync" {
			last = call
		}
		return nil
	}
	_, summary, err := run(t, &transfer.Copy{From: from, To: to})
	if err != nil || !summary.Complete() {
		t.Errorf("%+v, %v", summary, err)
	}
	if flushed, syncs := to.count("flush"), to.count("sync"); flushed != 100 || syncs != 3 || last != "sync" {
		t.Errorf("%d flushed, %d syncs, the last call was %s", flushed, syncs, last)
	}
	wantFiles(t, target, nars)
	// The same without new files.
	to.calls = nil
	if _, summary, err := run(t, &transfer.Copy{From: from, To: to}); err != nil || summary.Files[transfer.There] != count || to.count("flush") != count || last != "sync" {
		t.Errorf("%+v, %v", summary, err)
	}
}

// TestWhereDiffers reports the first different byte of large files.
func TestWhereDiffers(t *testing.T) {
	t.Parallel()
	text := strings.Repeat("x", 1_000_000)
	from, _ := opened(t, files{name(0): text})
	to, _ := opened(t, files{name(0): text[:777_777] + "y" + text[777_778:]})
	got, _, err := run(t, &transfer.Copy{From: from, To: to, Compare: true})
	if err != nil || got.outcomes[name(0)] != transfer.Differs || !strings.Contains(got.errs[name(0)].Error(), "from byte 777777 on") {
		t.Errorf("%v, %v", got, err)
	}
}

// readsTwice is a store that reads its content twice if possible.
type readsTwice struct {
	bytestore.Store
	mu    sync.Mutex
	ahead files
}

func (r *readsTwice) Stage(ctx context.Context, name string, from io.Reader, size int64) (bytestore.Staged, error) {
	if content, ok := from.(io.ReaderAt); ok && !strings.Contains(name, "nar-herder-copy") {
		text, err := io.ReadAll(io.NewSectionReader(content, 0, size))
		if err != nil {
			return nil, err
		}
		r.mu.Lock()
		r.ahead[name] = string(text)
		r.mu.Unlock()
	}
	return r.Store.Stage(ctx, name, from, size)
}

// TestReadTwice: a store can read a local file ahead, even one that is verified on the way, so
// that a bucket has checksums of large files.
func TestReadTwice(t *testing.T) {
	t.Parallel()
	nars := some(5)
	for _, verified := range []bool{false, true} {
		from, _ := opened(t, nars)
		disk, target := opened(t, nil)
		to := &readsTwice{Store: disk, ahead: make(files)}
		job := &transfer.Copy{From: from, To: to, Decode: decode}
		if verified {
			job.Items = itemsOf(t, nars)
		}
		if _, summary, err := run(t, job); err != nil || summary.Files[transfer.Copied] != int64(len(nars)) {
			t.Errorf("%+v, %v", summary, err)
		}
		wantFiles(t, target, nars)
		if !maps.Equal(to.ahead, nars) {
			t.Errorf("verified %v: read ahead: %q", verified, to.ahead)
		}
	}
}
