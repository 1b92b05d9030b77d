package storage_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"nar-herder/narinfo"
	"nar-herder/removal/deletion"
	"nar-herder/storage"
	"nar-herder/storage/importer"
)

// The test binary is also a process that imports and removes, and is killed or interferes.
const (
	helperTask     = "STORAGE_TEST_TASK" // makes it a helper
	helperDatabase = "STORAGE_TEST_DATABASE"
	helperStore    = "STORAGE_TEST_STORE"
	helperSources  = "STORAGE_TEST_SOURCES" // separated by colons
)

func TestMain(m *testing.M) {
	if task := os.Getenv(helperTask); task != "" {
		if err := help(task); err != nil {
			fmt.Println("failed:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// tasks are the tasks of helper processes.
var tasks = map[string]func(s *storage.Storage, sources []string) error{
	// move imports each directory once.
	"move": func(s *storage.Storage, sources []string) error {
		return importStrictly(s, sources, importer.Options{})
	},
	// keep imports copies a few times.
	"keep": func(s *storage.Storage, sources []string) error {
		for range 3 {
			if err := importStrictly(s, sources, importer.Options{Keep: true}); err != nil {
				return err
			}
		}
		return nil
	},
	// churn imports, replaces and removes until it is killed.
	"churn": func(s *storage.Storage, sources []string) error {
		for {
			for _, source := range sources {
				if err := importStrictly(s, []string{source}, importer.Options{Keep: true, Replace: true}); err != nil {
					return err
				}
			}
			if err := errors.Join(removeAll(s, 3), removeBatches(s, 2)); err != nil {
				return err
			}
		}
	},
	// remove removes items until its input ends.
	"remove": func(s *storage.Storage, _ []string) error {
		stop := make(chan struct{})
		go func() {
			_, _ = io.Copy(io.Discard, os.Stdin)
			close(stop)
		}()
		for {
			select {
			case <-stop:
				return nil
			default:
			}
			if err := errors.Join(removeAll(s, 4), removeBatches(s, 2)); err != nil {
				return err
			}
		}
	},
}

// help runs a helper process.
func help(task string) error {
	p := place{os.Getenv(helperDatabase), os.Getenv(helperStore)}
	s, closeAll, err := p.open(nil)
	if err != nil {
		return err
	}
	fmt.Println("ready")
	return errors.Join(tasks[task](s, strings.Split(os.Getenv(helperSources), ":")), closeAll())
}

// importStrictly turns any failure into an error.
func importStrictly(s *storage.Storage, sources []string, options importer.Options) error {
	var failures []error
	err := importer.New(s).Import(context.Background(), sources, options, func(i importer.Imported) {
		if i.Outcome == importer.Failed {
			failures = append(failures, fmt.Errorf("%s: %w", i.File, i.Err))
		}
	})
	return errors.Join(append(failures, err)...)
}

// removeAll removes one of so many items.
func removeAll(s *storage.Storage, every int) error {
	var hashes []narinfo.PathHash
	n := 0
	for item, err := range s.Items(context.Background()) {
		if err != nil {
			return err
		}
		if n++; n%every == 0 {
			hashes = append(hashes, item.Hash)
		}
	}
	for _, hash := range hashes {
		if _, err := s.Remove(context.Background(), hash); err != nil && !errors.Is(err, storage.ErrNotFound) {
			return err
		}
	}
	return nil
}

// removeBatches removes one of so many items: half of them at once, half by withdrawal.
func removeBatches(s *storage.Storage, every int) error {
	var batches [2][]narinfo.PathHash
	n := 0
	for item, err := range s.Items(context.Background()) {
		if err != nil {
			return err
		}
		if n++; n%every == 0 {
			batch := &batches[n/every%2]
			*batch = append(*batch, item.Hash)
		}
	}
	removals, err := s.RemoveAll(context.Background(), batches[0], nil)
	for _, r := range removals {
		if !errors.Is(r.Err, storage.ErrNotFound) {
			err = errors.Join(err, r.Err)
		}
	}
	_, err2 := s.WithdrawAll(context.Background(), batches[1], nil)
	_, err3 := deletion.RemoveWithdrawn(context.Background(), s, time.Now().Add(48*time.Hour))
	return errors.Join(err, err2, err3)
}

// helper is a running process.
type helper struct {
	*exec.Cmd
	out   *bufio.Reader
	input io.WriteCloser
}

// startHelper starts a process and waits until it is ready.
func startHelper(t testing.TB, p place, task string, sources ...string) *helper {
	t.Helper()
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	command := exec.CommandContext(t.Context(), program)
	command.Env = append(os.Environ(), helperTask+"="+task,
		helperDatabase+"="+p.database, helperStore+"="+p.store, helperSources+"="+strings.Join(sources, ":"))
	command.Stderr = os.Stderr
	out, err := command.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	input, err := command.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	h := &helper{command, bufio.NewReader(out), input}
	if line, err := h.out.ReadString('\n'); err != nil || line != "ready\n" {
		t.Errorf("the helper printed %q, %v", line, err)
	}
	return h
}

// end waits for the process, which must succeed.
func (h *helper) end(t testing.TB) {
	t.Helper()
	_ = h.input.Close()
	said, err := io.ReadAll(h.out)
	if waitErr := h.Wait(); err != nil || waitErr != nil {
		t.Errorf("the helper: %v, %v: %s", err, waitErr, said)
	}
}
