package storage_test

import (
	"context"
	"crypto/rand"
	"database/sql"
	"errors"
	"testing"

	"nar-herder/narinfo/signing"
	"nar-herder/storage"
	"nar-herder/storage/check"
	"nar-herder/storage/importer"
	"nar-herder/storage/resign"
)

// TestCheckSignatures: each item without a signature is found, in the order of the index, and
// the check can be stopped.
func TestCheckSignatures(t *testing.T) {
	t.Parallel()
	const count = 300
	p := newPlace(t)
	s := p.openTest(t)
	fakes := make([]fake, count)
	for n := range fakes {
		fakes[n] = fake{n: n, content: "content"}
	}
	importAll(t, s, importer.Options{}, laid(t, fakes...))
	checker := check.New(storage.New(s.Index(), s.ByteStore(), storage.Options{Keys: new(signing.Keys)}))
	var want []string
	for item, err := range s.Items(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		want = append(want, item.Hash.String())
	}
	looked, found := 0, 0
	for finding, err := range checker.CheckSignatures(t.Context(), func() { looked++ }) {
		if err != nil || finding.Kind != check.Unsigned || finding.Item.Hash.String() != want[found] {
			t.Fatalf("%d: %+v, %v", found, finding, err)
		}
		found++
	}
	if looked != count || found != count {
		t.Errorf("%d of %d were looked at, %d found", looked, count, found)
	}
	for range checker.CheckSignatures(t.Context(), nil) {
		break
	}
	// Without keys, nothing is wrong.
	for finding, err := range check.New(s).CheckSignatures(t.Context(), nil) {
		t.Errorf("%+v, %v", finding, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	var last error
	for _, err := range checker.CheckSignatures(ctx, nil) {
		last = err
	}
	if last == nil {
		t.Error("no error after the context has ended")
	}
}

// TestRepairText: a narinfo of a source needs the signature of an authorized key, although it
// matches the checksum: a source can make another text match that.
func TestRepairText(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	s := p.openTest(t)
	f := fake{n: 1, content: "content"}
	importAll(t, s, importer.Options{}, laid(t, f))
	db, err := sql.Open("sqlite", p.database)
	if err != nil {
		t.Fatal(err)
	}
	_, err = db.Exec("UPDATE narinfos SET text = zeroblob(length(text))")
	if err := errors.Join(err, db.Close()); err != nil {
		t.Fatal(err)
	}
	repair := func(keys *signing.Keys) (done check.Repair) {
		checker := check.New(storage.New(s.Index(), s.ByteStore(), storage.Options{Keys: keys}))
		repairer := checker.Repairer(check.RepairOptions{Decode: decode, Sources: []check.Source{source{"the source", giving, []fake{f}}}})
		for finding, err := range checker.CheckIndex(t.Context(), func() {}) {
			if err != nil {
				t.Fatal(err)
			}
			done = repairer.Repair(t.Context(), finding)
		}
		return done
	}
	if done := repair(new(signing.Keys)); done.Mended || storage.Reason(done.Err) != storage.Unsigned {
		t.Errorf("with keys: %+v", done)
	}
	if done := repair(nil); !done.Mended || done.Err != nil {
		t.Errorf("without keys: %+v", done)
	}
	wantServed(t, s, f)
}

// TestCarryStored: a file isn't carried over to a narinfo that claims another compression.
func TestCarryStored(t *testing.T) {
	t.Parallel()
	s := newPlace(t).openTest(t)
	f := fake{n: 1, content: "content"}
	importAll(t, s, importer.Options{}, laid(t, f))
	old, err := s.Item(t.Context(), f.hash())
	if err != nil {
		t.Fatal(err)
	}
	for kind, want := range map[string]uint64{"lzip": 1, "zstd": 0} {
		other := fake{n: 1, content: "content", kind: kind, url: f.name(), note: "new"}
		entry := s.Index().Prepare(other.parsed())
		if storage.CarryStored(entry, old); entry.Stored != want {
			t.Errorf("%s: stored %b, want %b", kind, entry.Stored, want)
		}
	}
}

// TestImportSignedByFormerKey: an unsigned narinfo that is imported again is signed with the new
// key if the index has it with the signature of a key that isn't authorized any more.
func TestImportSignedByFormerKey(t *testing.T) {
	t.Parallel()
	s := newPlace(t).openTest(t)
	source := laid(t, fake{n: 1, content: "content"})
	for _, want := range []string{"1 added", "1 updated", "1 known"} {
		key, keys := newKey(t)
		if want == "1 known" {
			keys = nil
		}
		as := storage.New(s.Index(), s.ByteStore(), storage.Options{Keys: keys})
		signer := &resign.Signer{Key: key, Host: "host"}
		wantOutcomes(t, importAll(t, as, importer.Options{Keep: true, Sign: signer.SignUnsigned}, source), want)
	}
}

func newKey(t testing.TB) (*signing.PrivateKey, *signing.Keys) {
	t.Helper()
	key, err := signing.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	keys, err := signing.ParseKeys([]byte(key.Public()))
	if err != nil {
		t.Fatal(err)
	}
	return key, keys
}
