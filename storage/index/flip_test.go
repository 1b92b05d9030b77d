package index

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"testing"
	"time"

	"nar-herder/internal/rounds"
	"nar-herder/narinfo"
)

// flippable returns the bytes of a small database of narinfos like those of a build farm.
func flippable(t testing.TB, count int) (content []byte, all []*narinfo.Narinfo) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "db")
	x, err := Open(t.Context(), path, Options{})
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range sampleNarinfos(t, count) {
		n, err := narinfo.Parse(text)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, n)
		put(t, x, n)
	}
	if err := x.Close(); err != nil {
		t.Fatal(err)
	}
	return read(t, path), all
}

// TestFlippedBits flips single bits of a database. Each narinfo is then correct or an
// error, in every kind of read. NAR_HERDER_ROUNDS=10 flips ten times as many.
func TestFlippedBits(t *testing.T) {
	t.Parallel()
	const count = 25
	content, all := flippable(t, count)
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d, %d bytes", seed, len(content))
	random := rand.New(rand.NewPCG(seed, 0))
	texts := make(map[narinfo.PathHash][]byte)
	for _, n := range all {
		texts[n.StorePath.Hash] = n.Text
	}
	path := filepath.Join(t.TempDir(), "db")
	var refused, faults, absent, lost int
	flips := 0
	for ; flips < rounds.Of(100); flips++ {
		at, bit := random.IntN(len(content)), byte(1)<<random.IntN(8)
		for content[at] == 0 && random.IntN(8) != 0 { // mostly unused
			at = random.IntN(len(content))
		}
		flipped := bytes.Clone(content)
		flipped[at] ^= bit
		write(t, path, flipped)
		x, err := Open(t.Context(), path, Options{Access: Read})
		if err != nil {
			refused++
			continue
		}
		where := fmt.Sprintf("bit %#x of byte %d", bit, at)
		found := make(map[narinfo.PathHash]bool)
		for damage, err := range x.FindDamage(t.Context(), func() {}) {
			if err != nil {
				found = nil // any
				break
			}
			found[damage.Hash] = true
		}
		for item, err := range x.Items(t.Context()) {
			if err == nil && !bytes.Equal(item.Text, texts[item.Hash]) {
				t.Errorf("%s: %s is listed with another text", where, item.Hash)
			}
		}
		page, err := x.ChangesAfter(t.Context(), 0, 1000)
		for _, change := range page.Changes {
			if err == nil && change.Kind == Added && !bytes.Equal(change.Text, texts[change.Hash]) {
				t.Errorf("%s: change %d has another text", where, change.ID)
			}
		}
		for _, n := range all {
			text, err := x.Text(t.Context(), n.StorePath.Hash)
			switch {
			case err == nil && !bytes.Equal(text, n.Text):
				t.Errorf("%s: %s has another text", where, n.StorePath.Hash)
			case err == ErrNotFound:
				absent++
				if found != nil && !found[n.StorePath.Hash] {
					t.Errorf("%s: %s is not found, and a check does not report it", where, n.StorePath.Hash)
				}
			case err != nil:
				faults++
			}
			item, err := x.Item(t.Context(), n.StorePath.Hash)
			if err == nil && !bytes.Equal(item.Text, n.Text) {
				t.Errorf("%s: item %s has another text", where, n.StorePath.Hash)
			} else if errors.Is(err, ErrNotFound) && found != nil && !found[n.StorePath.Hash] {
				t.Errorf("%s: item %s is not found, and a check does not report it", where, n.StorePath.Hash)
			} else if err != nil && !errors.Is(err, ErrNotFound) && found != nil && !found[n.StorePath.Hash] {
				lost++
				t.Log(where, err)
			}
		}
		if err := x.Close(); err != nil {
			t.Errorf("%s: %v", where, err)
		}
		if t.Failed() && random.IntN(4) == 0 {
			break
		}
	}
	t.Logf("%d flips: %d times not opened, %d faults, of which a check does not name %d, %d not found", flips, refused, faults, lost, absent)
}
