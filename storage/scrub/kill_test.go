package scrub_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"nar-herder/internal/rounds"
	"nar-herder/narinfo"
	"nar-herder/storage"
	"nar-herder/storage/check"
	"nar-herder/storage/directory"
	"nar-herder/storage/index"
	"nar-herder/storage/scrub"
)

// directorySource is a [check.Source] of a directory with good nars.
type directorySource string

func (d directorySource) String() string { return string(d) }

func (d directorySource) Fetch(_ context.Context, item *storage.Item, n int) (io.ReadCloser, error) {
	return os.Open(filepath.Join(string(d), item.FileName(n)))
}

func (directorySource) Narinfo(context.Context, narinfo.PathHash) ([]byte, error) {
	return nil, storage.ErrNotFound
}

// killVariable names the directory of a place for the process that is killed.
const killVariable = "NAR_HERDER_TEST_SCRUB"

// TestMain also is the process that is killed.
func TestMain(m *testing.M) {
	if top := os.Getenv(killVariable); top != "" {
		if err := scrubIn(context.Background(), top); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// scrubIn runs a pass in the directory of a place, with the directory "good" as its source.
func scrubIn(ctx context.Context, top string) error {
	local, err := directory.Open(filepath.Join(top, "store"))
	if err != nil {
		return err
	}
	x, err := index.Open(ctx, filepath.Join(top, "index.db"), index.Options{})
	if err != nil {
		return errors.Join(err, local.Close())
	}
	s := scrub.New(storage.New(x, local, storage.Options{}), scrub.Options{
		Interval: time.Hour, Decode: decode, Sources: []check.Source{directorySource(filepath.Join(top, "good"))},
	})
	s.Hurry()
	return errors.Join(s.Pass(ctx), x.Close(), local.Close())
}

// TestKill kills scrubs at random moments. Nothing is lost, and the next one repairs the rest.
func TestKill(t *testing.T) {
	t.Parallel()
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	for range rounds.Of(3) {
		nars := makeNars(t, random, 200, 2000)
		p := newPlace(t, nars, storage.Options{}, nil)
		top := filepath.Dir(p.directory)
		for _, n := range nars {
			name := filepath.Join(top, "good", n.name())
			if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(name, n.file, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		p.damage(t, random, nars, 60)
		for range 6 {
			child := exec.Command(os.Args[0])
			child.Env = append(os.Environ(), killVariable+"="+top)
			var stderr bytes.Buffer
			child.Stderr = &stderr
			if err := child.Start(); err != nil {
				t.Fatal(err)
			}
			timer := time.AfterFunc(time.Duration(random.Int64N(int64(400*time.Millisecond))), func() { _ = child.Process.Kill() })
			_ = child.Wait()
			timer.Stop()
			if stderr.Len() > 0 {
				t.Fatalf("%s", &stderr)
			}
			for _, n := range nars {
				item, err := p.Item(t.Context(), n.hash())
				if err != nil || item.Stored != 1 {
					t.Fatalf("%s: %v, or its nar is lost", n.name(), err)
				}
				content, err := os.ReadFile(p.path(n))
				if err != nil || !item.VerifiedAt.IsZero() && !bytes.Equal(content, n.file) {
					t.Fatalf("%s: %v, or it is wrong and counts as verified", n.name(), err)
				}
			}
		}
		if err := scrubIn(t.Context(), top); err != nil {
			t.Fatal(err)
		}
		for _, n := range nars {
			if content, err := os.ReadFile(p.path(n)); err != nil || !bytes.Equal(content, n.file) {
				t.Errorf("%s is not repaired: %v", n.name(), err)
			}
		}
		if sums, err := p.Index().Verification(t.Context()); err != nil || sums.Never != 0 {
			t.Errorf("%+v, %v", sums, err)
		}
	}
}
