package search

import (
	"bufio"
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"nar-herder/storage/index"
)

// helperPath names the database of a process that builds the index again and again.
const helperPath = "SEARCH_TEST_PATH"

func TestMain(m *testing.M) {
	if path := os.Getenv(helperPath); path != "" {
		if err := help(path); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// help writes the file of all items until the process is killed.
func help(path string) error {
	ctx := context.Background()
	x, err := index.Open(ctx, path, index.Options{Access: index.Write})
	if err != nil {
		return err
	}
	for {
		s := New(x, slog.New(slog.DiscardHandler))
		s.limits = few
		for s.State().Building || s.recent.items > 0 {
			if _, err := s.step(ctx); err != nil {
				return err
			}
			if s.State().Bytes > 0 {
				fmt.Println("written")
			}
			if err := s.write(ctx, nil); err != nil {
				continue // another process is writing it
			}
		}
		if err := s.Close(); err != nil {
			return err
		}
	}
}

// TestKill: processes that write the file at the same time and are killed at any moment leave
// none, or a complete one.
func TestKill(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "index.db")
	x := openIndex(t, path)
	var items []model
	names := random(rand.New(rand.NewPCG(1, 1)), 400)
	put(t, x, 0, names...)
	for n, name := range names {
		items = append(items, model{n, name})
	}
	r := rand.New(rand.NewPCG(1, 2))
	for round := range 8 {
		var helpers []*exec.Cmd
		for range 2 {
			helper := exec.Command(os.Args[0])
			helper.Env = append(os.Environ(), helperPath+"="+path)
			helper.Stderr = t.Output()
			out, err := helper.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := helper.Start(); err != nil {
				t.Fatal(err)
			}
			// The process is killed while it writes another file.
			for lines := bufio.NewScanner(out); r.IntN(4) > 0 && lines.Scan(); {
			}
			helpers = append(helpers, helper)
		}
		put(t, x, 1000+round, "late-1")
		items = append(items, model{1000 + round, "late-1"})
		time.Sleep(time.Duration(r.IntN(5000)) * time.Microsecond)
		for _, helper := range helpers {
			if err := helper.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			_ = helper.Wait() // it was killed
		}
		s := loaded(t, x)
		if _, err := os.Stat(path + suffix); err == nil && s.table == nil {
			t.Error("a file that is not complete is left")
		}
		follow(t, s)
		wantLikeNaive(t, s, items, "n", 1000)
		wantLikeNaive(t, s, items, "late", 1000)
	}
}
