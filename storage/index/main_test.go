package index

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"testing"
)

// The test binary is also a process of its own that writes to an index, since
// locks between processes are others than those within one.
const (
	helperPath  = "INDEX_TEST_PATH"  // of the database; makes it a helper
	helperFirst = "INDEX_TEST_FIRST" // the first item to be put
	helperCount = "INDEX_TEST_COUNT" // how many, in a transaction each
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

// help is what a helper process does.
func help(path string) error {
	first, err := strconv.Atoi(os.Getenv(helperFirst))
	if err != nil {
		return err
	}
	count, err := strconv.Atoi(os.Getenv(helperCount))
	if err != nil {
		return err
	}
	x, err := Open(context.Background(), path, Options{})
	if err != nil {
		return err
	}
	for n := first; n < first+count; n++ {
		item := testNarinfo(n, 1, []int{0, n}, 10)
		if err := x.Update(context.Background(), func(tx *Tx) error { return putIn(tx, x, item, 1, nil) }); err != nil {
			return err
		}
	}
	return x.Close()
}

// helper makes a process that puts items.
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
