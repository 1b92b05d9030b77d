package transfer_test

import (
	"context"
	"errors"
	"io/fs"
	"iter"
	"strings"
	"syscall"
	"testing"

	"nar-herder/storage/bytestore"
	"nar-herder/storage/transfer"
)

// on one call, or on those for one name, a hook fails.
func failing(err error, calls string, names ...string) func(call, name string) error {
	return func(call, name string) error {
		if !strings.Contains(" "+calls+" ", " "+call+" ") {
			return nil
		}
		for _, one := range names {
			if one == name {
				return err
			}
		}
		if len(names) == 0 && !strings.HasPrefix(name, "nar/nar-herder-copy-") {
			return err
		}
		return nil
	}
}

// TestOneFails has single files fail in each way, and the others arrive.
func TestOneFails(t *testing.T) {
	t.Parallel()
	nars := some(30)
	bad := name(7)
	for _, test := range []struct {
		what     string
		from, to func(call, name string) error
		err      error
	}{
		{"open", failing(errFault, "open", bad), nil, errFault},
		{"read", failing(syscall.EIO, "read", bad), nil, syscall.EIO},
		{"listed", failing(errFault, "listed", bad), nil, errFault},
		{"look", nil, failing(errFault, "stat", bad), errFault},
		{"stage", nil, failing(errFault, "stage", bad), errFault},
		{"commit", nil, failing(errFault, "commit", bad), errFault},
	} {
		for _, known := range []items{nil, itemsOf(t, nars)} {
			from, _ := opened(t, nars)
			to, target := opened(t, nil)
			job := &transfer.Copy{From: &hooked{Store: from, hook: test.from}, To: &hooked{Store: to, hook: test.to}}
			if known != nil {
				job.Items, job.Decode = known, decode
			}
			got, summary, err := run(t, job)
			if err != nil || summary.Files[transfer.Copied] != 29 || summary.Files[transfer.Failed] != 1 || summary.Complete() || !errors.Is(got.errs[bad], test.err) {
				t.Errorf("%s: %+v, %v, %v", test.what, summary, got.errs[bad], err)
			}
			if left := on(t, target); len(left) != 29 || left[bad] != "" {
				t.Errorf("%s: %d files", test.what, len(left))
			}
			// The next run brings the rest.
			job = &transfer.Copy{From: from, To: to}
			if _, summary, err := run(t, job); err != nil || !summary.Complete() || summary.Files[transfer.Copied] != 1 {
				t.Errorf("%s: %+v, %v", test.what, summary, err)
			}
			wantFiles(t, target, nars)
		}
	}
	known := itemsOf(t, nars)
	known[bad] = nil // its row can't be read
	from, _ := opened(t, nars)
	to, _ := opened(t, nil)
	got, summary, err := run(t, &transfer.Copy{From: from, To: to, Items: known, Decode: decode})
	if err != nil || summary.Files[transfer.Failed] != 1 || !errors.Is(got.errs[bad], errFault) {
		t.Errorf("%+v, %v", summary, err)
	}
}

// TestGone has files go between the listing and their turn.
func TestGone(t *testing.T) {
	t.Parallel()
	nars := some(5)
	from, source := opened(t, nars)
	to, target := opened(t, files{name(2): nars[name(2)]})
	leaving := &hooked{Store: from}
	leaving.hook = func(call, file string) error {
		if call == "open" && (file == name(1) || file == name(2)) {
			return from.Remove(context.Background(), file)
		}
		return nil
	}
	// One is to be copied, the other to be compared.
	got, summary, err := run(t, &transfer.Copy{From: leaving, To: to, Compare: true})
	if err != nil || summary.Files[transfer.Gone] != 2 || !summary.Complete() || summary.Files[transfer.Copied] != 3 {
		t.Errorf("%+v, %v, %v", summary, got, err)
	}
	if len(on(t, source)) != 3 || len(on(t, target)) != 4 {
		t.Errorf("%d and %d files", len(on(t, source)), len(on(t, target)))
	}
	// From the target: it is copied again.
	lost := &hooked{Store: to}
	lost.hook = func(call, file string) error {
		if call == "flush" && file == name(3) {
			return to.Remove(context.Background(), file)
		}
		return nil
	}
	if got, _, err := run(t, &transfer.Copy{From: from, To: lost}); err != nil || got.outcomes[name(3)] != transfer.Copied || got.outcomes[name(4)] != transfer.There {
		t.Errorf("%v, %v", got, err)
	}
}

// TestGivenUp has a store fail as a whole: that ends the copy after a few files.
func TestGivenUp(t *testing.T) {
	t.Parallel()
	nars := some(300)
	broken := itemsOf(t, nars)
	for name := range broken {
		broken[name] = nil
	}
	for _, test := range []struct {
		what      string
		from, to  func(call, name string) error
		items     items
		err       error
		few, most int64 // failures
	}{
		{"a full disk", nil, failing(syscall.ENOSPC, "stage"), nil, syscall.ENOSPC, 1, 1},
		{"a target that has gone", nil, failing(errFault, "stage probe"), nil, errFault, 8, 16},
		{"a target that only says that it works", nil, failing(errFault, "commit"), nil, errFault, 64, 72},
		{"a source that has gone", func() func(call, name string) error {
			lists := 0
			return func(call, name string) error {
				if call == "open" {
					return errFault
				}
				if call == "list" {
					if lists++; lists > 1 {
						return syscall.ENOTCONN
					}
				}
				return nil
			}
		}(), nil, nil, syscall.ENOTCONN, 8, 16},
		{"an index that can't be read", nil, nil, broken, errFault, 8, 16},
		{"a listing that fails", failing(errFault, "list"), nil, nil, errFault, 0, 0},
		{"a target that can't be synced", nil, failing(errFault, "sync"), nil, errFault, 0, 0},
	} {
		from, _ := opened(t, nars)
		to, target := opened(t, nil)
		job := &transfer.Copy{From: &hooked{Store: from, hook: test.from}, To: &hooked{Store: to, hook: test.to}, Concurrency: 1}
		if test.items != nil {
			job.Items, job.Decode = test.items, decode
		}
		_, summary, err := run(t, job)
		if !errors.Is(err, transfer.ErrStore) || !errors.Is(err, test.err) {
			t.Errorf("%s: %v, want %v", test.what, err, test.err)
		}
		if failed := summary.Files[transfer.Failed]; failed < test.few || failed > test.most {
			t.Errorf("%s: %+v, want from %d to %d failures", test.what, summary, test.few, test.most)
		}
		for name := range on(t, target) {
			if strings.Contains(name, "nar-herder") {
				t.Errorf("%s: %s is left", test.what, name)
			}
		}
		job = &transfer.Copy{From: from, To: to}
		if _, summary, err := run(t, job); err != nil || !summary.Complete() {
			t.Errorf("%s: %+v, %v", test.what, summary, err)
		}
		wantFiles(t, target, nars)
	}
}

// TestBadFiles: many files in a row that can't be read are no reason to give up
// those after them.
func TestBadFiles(t *testing.T) {
	t.Parallel()
	nars := some(100)
	from, _ := opened(t, nars)
	to, target := opened(t, nil)
	var bad []string
	for info, err := range from.List(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		if bad = append(bad, info.Name); len(bad) == 90 {
			break
		}
	}
	_, summary, err := run(t, &transfer.Copy{From: &hooked{Store: from, hook: failing(syscall.EIO, "read", bad...)}, To: to, Concurrency: 1})
	if err != nil || summary.Files[transfer.Failed] != 90 || len(on(t, target)) != 10 {
		t.Errorf("%+v, %v, %d files", summary, err, len(on(t, target)))
	}
}

// TestFirstWrite: that the target can't be written is said before anything is
// read.
func TestFirstWrite(t *testing.T) {
	t.Parallel()
	for _, call := range []string{"stage", "commit"} {
		from, _ := opened(t, some(1))
		to, target := opened(t, nil)
		refusing := func(at, name string) error {
			if at == call {
				return fs.ErrPermission
			}
			return nil
		}
		reads := &hooked{Store: from}
		_, summary, err := run(t, &transfer.Copy{From: reads, To: &hooked{Store: to, hook: refusing}})
		if !errors.Is(err, transfer.ErrStore) || !errors.Is(err, fs.ErrPermission) || summary != (transfer.Summary{}) || reads.count("list") != 0 {
			t.Errorf("%+v, %v", summary, err)
		}
		wantFiles(t, target, files{})
	}
}

// TestInterrupted leaves whole files, and the next run brings the others.
func TestInterrupted(t *testing.T) {
	t.Parallel()
	nars := some(50)
	for _, where := range []string{"open", "read", "stage", "commit", "listed"} {
		from, _ := opened(t, nars)
		to, target := opened(t, nil)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		ending := &hooked{}
		ending.hook = func(call, name string) error {
			if call == where && ending.count(where) == 20 {
				cancel()
			}
			return nil
		}
		source, sink := &hooked{Store: from, hook: ending.call}, &hooked{Store: to, hook: ending.call}
		_, summary, err := copied(t, ctx, &transfer.Copy{From: source, To: sink, Items: itemsOf(t, nars), Decode: decode})
		if !errors.Is(err, context.Canceled) || errors.Is(err, transfer.ErrStore) || summary.Files[transfer.Failed] != 0 {
			t.Errorf("%s: %+v, %v", where, summary, err)
		}
		before := on(t, target)
		if int64(len(before)) != summary.Files[transfer.Copied] || len(before) == 0 || len(before) == len(nars) {
			t.Errorf("%s: %d files, %+v", where, len(before), summary)
		}
		for name, text := range before {
			if nars[name] != text {
				t.Errorf("%s: %s has %q", where, name, text)
			}
		}
		// What is shown is synced all the same.
		if errors.Is(err, transfer.ErrStore) || sink.count("sync") != 1 {
			t.Errorf("%s: %d syncs", where, sink.count("sync"))
		}
		_, summary, err = run(t, &transfer.Copy{From: from, To: to})
		if err != nil || summary.Files[transfer.There] != int64(len(before)) || summary.Files[transfer.Copied] != int64(len(nars)-len(before)) {
			t.Errorf("%s: %+v, %v", where, summary, err)
		}
		wantFiles(t, target, nars)
	}
}

// TestChanging has a file grow while it is read: it is not stored.
func TestChanging(t *testing.T) {
	t.Parallel()
	nars := some(3)
	from, _ := opened(t, nars)
	to, target := opened(t, nil)
	// The source says fewer bytes than it gives.
	_, _, err := run(t, &transfer.Copy{From: &lying{from, -1}, To: to})
	if err != nil {
		t.Error(err)
	}
	wantFiles(t, target, files{})
	got, summary, err := run(t, &transfer.Copy{From: &lying{from, 1}, To: to, Items: itemsOf(t, nars), Decode: decode})
	if err != nil || summary.Files[transfer.Failed] != 3 || !strings.Contains(got.errs[name(1)].Error(), "changed while it was read") {
		t.Errorf("%+v, %v, %v", summary, got, err)
	}
	wantFiles(t, target, files{})
}

// TestSomeFail has the target fail with every other file: that is not for ever,
// and all are tried.
func TestSomeFail(t *testing.T) {
	t.Parallel()
	nars := some(200)
	var failed []string
	for n := 0; n < 200; n += 2 {
		failed = append(failed, name(n))
	}
	from, _ := opened(t, nars)
	// In the order in which they were made: one fails, and one does not.
	inOrder := &hooked{Store: &ordered{Store: from, count: 200}}
	to, target := opened(t, nil)
	_, summary, err := run(t, &transfer.Copy{From: inOrder, To: &hooked{Store: to, hook: failing(errFault, "commit", failed...)}, Concurrency: 1})
	if err != nil || summary.Files[transfer.Failed] != 100 || len(on(t, target)) != 100 {
		t.Errorf("%+v, %v", summary, err)
	}
	full, _ := opened(t, nars)
	_, summary, err = run(t, &transfer.Copy{From: inOrder, To: &hooked{Store: full, hook: failing(errFault, "open", failed...)}, Concurrency: 1, Compare: true})
	if err != nil || summary.Files[transfer.Failed] != 100 || summary.Files[transfer.There] != 100 {
		t.Errorf("%+v, %v", summary, err)
	}
}

// ordered lists the made-up nars by their numbers.
type ordered struct {
	bytestore.Store
	count int
}

func (o *ordered) List(ctx context.Context) iter.Seq2[bytestore.Info, error] {
	return func(yield func(bytestore.Info, error) bool) {
		for n := range o.count {
			info, err := o.Stat(ctx, name(n))
			if !yield(info, err) {
				return
			}
		}
	}
}

// TestInterruptedRead ends within a large file.
func TestInterruptedRead(t *testing.T) {
	t.Parallel()
	from, _ := opened(t, files{name(0): strings.Repeat("x", 20<<20)})
	to, target := opened(t, nil)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	source := &hooked{Store: from}
	source.hook = func(call, name string) error {
		if source.count("read") == 3 {
			cancel()
		}
		return nil
	}
	if _, _, err := copied(t, ctx, &transfer.Copy{From: source, To: to}); !errors.Is(err, context.Canceled) || source.count("read") != 3 {
		t.Errorf("%v after %d reads", err, source.count("read"))
	}
	wantFiles(t, target, files{})
}
