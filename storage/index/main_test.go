package index

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"testing"
)

// The test binary is also a helper process that writes to an index, since locks between
// processes differ from those within one.
const (
	helperPath  = "INDEX_TEST_PATH"  // path of the database; makes the process a helper
	helperFirst = "INDEX_TEST_FIRST" // the first item to put
	helperCount = "INDEX_TEST_COUNT" // number of items, each in its own transaction
	helperReads = "INDEX_TEST_READS" // how many times to open the database and read; nothing is put
)

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

// help runs a helper process.
func help(path string) error {
	first, err := strconv.Atoi(os.Getenv(helperFirst))
	if err != nil {
		return err
	}
	count, err := strconv.Atoi(os.Getenv(helperCount))
	if err != nil {
		return err
	}
	if reads := os.Getenv(helperReads); reads != "" {
		var opens, each int
		_, err := fmt.Sscan(reads, &opens, &each)
		for ; opens > 0 && err == nil; opens-- {
			err = readTimes(path, each)
		}
		return err
	}
	x, err := Open(context.Background(), path, Options{})
	if err != nil {
		return err
	}
	if err := putEach(x, first, count); err != nil {
		return err
	}
	// Put more items as long as there are requests for them.
	for requests := bufio.NewScanner(os.Stdin); requests.Scan(); fmt.Println("done") {
		var first, count int
		if _, err := fmt.Sscan(requests.Text(), &first, &count); err != nil {
			return err
		}
		err := x.Update(context.Background(), func(tx *Tx) error {
			for n := first; n < first+count; n++ {
				if err := putIn(tx, x, testNarinfo(n, 1, nil, 10), 1, nil); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return x.Close()
}

// putEach puts each item in its own transaction, and reads meanwhile, as a server does.
func putEach(x *Index, first, count int) (err error) {
	ctx, cancel := context.WithCancel(context.Background())
	read := make(chan error)
	go func() {
		var err error
		for ctx.Err() == nil && err == nil {
			_, err = x.Totals(context.Background())
		}
		read <- err
	}()
	defer func() {
		cancel()
		err = errors.Join(err, <-read)
	}()
	for n := first; n < first+count; n++ {
		item := testNarinfo(n, 1, []int{0, n}, 10)
		if err := x.Update(context.Background(), func(tx *Tx) error { return putIn(tx, x, item, 1, nil) }); err != nil {
			return err
		}
	}
	return nil
}

// readTimes opens a database to which others add items, and reads from it, as often as
// times.
func readTimes(path string, times int) error {
	x, err := Open(context.Background(), path, Options{Access: Read})
	if err != nil {
		return fmt.Errorf("Open: %w", err)
	}
	before := int64(0)
	for range times {
		var totals Totals
		if totals, err = x.Totals(context.Background()); err == nil && (totals.Items < max(before, 2) || totals.StoredSize != 10*(totals.Items-2)+30) {
			err = fmt.Errorf("%+v after %d items", totals, before)
		}
		if err != nil {
			break
		}
		before = totals.Items
	}
	if err = errors.Join(err, x.Close()); errors.Is(err, ErrChanged) {
		return nil
	}
	return err
}

// writer is a helper process that has a database open.
type writer struct {
	command *exec.Cmd
	in      io.WriteCloser
	out     *bufio.Scanner
}

// startWriter starts a writer and waits until it has put an item.
func startWriter(t testing.TB, path string) *writer {
	t.Helper()
	w := &writer{command: helper(t, path, 0, 0)}
	var err error
	if w.in, err = w.command.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := w.command.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	w.out = bufio.NewScanner(out)
	w.command.Stderr = os.Stderr
	if err := w.command.Start(); err != nil {
		t.Fatal(err)
	}
	w.put(t, 0, 1)
	return w
}

// put makes the writer put items in one transaction.
func (w *writer) put(t testing.TB, first, count int) {
	t.Helper()
	if _, err := fmt.Fprintln(w.in, first, count); err != nil {
		t.Fatal(err)
	}
	if !w.out.Scan() {
		t.Fatal("the helper has ended")
	}
}

// close makes the writer close the database and exit.
func (w *writer) close(t testing.TB) {
	t.Helper()
	if err := w.in.Close(); err != nil {
		t.Fatal(err)
	}
	if err := w.command.Wait(); err != nil {
		t.Fatal(err)
	}
}

// helper returns a process that puts items.
func helper(t testing.TB, path string, first, count int) *exec.Cmd {
	t.Helper()
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	command := exec.CommandContext(t.Context(), program)
	command.Env = append(os.Environ(),
		helperPath+"="+path, helperFirst+"="+strconv.Itoa(first), helperCount+"="+strconv.Itoa(count))
	return command
}
