package bootstrap

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
)

// TestGrowing: a read waits until its bytes have arrived, or the download has ended.
func TestGrowing(t *testing.T) {
	t.Parallel()
	name := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(name, []byte("0123456789"), 0o600); err != nil {
		t.Fatal(err)
	}
	cut := errors.New("cut")
	for end, want := range map[error]string{nil: "56789", cut: "56"} {
		synctest.Test(t, func(t *testing.T) {
			g := newGrowing(name)
			var got []byte
			var failure error
			done := make(chan struct{})
			go func() {
				defer close(done)
				var file fs.File
				if file, failure = g.Open(growingFile); failure != nil {
					return
				}
				defer file.Close()
				if info, err := file.Stat(); err != nil || info.Size() != 10 {
					t.Errorf("its size is %v, %v, want 10", info, err)
				}
				if _, failure = file.(io.Seeker).Seek(5, io.SeekStart); failure != nil {
					return
				}
				one := make([]byte, 1)
				for failure == nil {
					var n int
					n, failure = file.Read(one)
					got = append(got, one[:n]...)
				}
			}()
			for _, step := range []struct {
				have int64
				got  string
			}{{0, ""}, {5, ""}, {6, "5"}, {7, "56"}} {
				g.grow(step.have, 10)
				synctest.Wait()
				if string(got) != step.got {
					t.Errorf("of %d bytes, %q was read, want %q", step.have, got, step.got)
				}
			}
			g.end(10, end)
			<-done
			if string(got) != want || end == nil && failure != io.EOF || end != nil && !errors.Is(failure, cut) {
				t.Errorf("%q was read, and then %v", got, failure)
			}
		})
	}
	if _, err := newGrowing(name).Open(growingFile + "-wal"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("another file: %v", err)
	}
}
