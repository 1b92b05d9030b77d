package cached

import (
	"fmt"
	"io/fs"
	"log/slog"
	"strings"
	"syscall"
	"testing"

	"nar-herder/compression"
)

// TestJudgeProbe: a full disk is a warning, another failure an error.
func TestJudgeProbe(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		err     error
		isError bool
	}{{nil, false}, {syscall.ENOSPC, false}, {syscall.EDQUOT, false}, {syscall.EACCES, true}} {
		var text strings.Builder
		c := &Cache{log: slog.New(slog.NewTextHandler(&text, nil))}
		err := test.err
		if err != nil {
			err = fmt.Errorf("write the probe: %w", &fs.PathError{Op: "write", Path: "probe", Err: err})
		}
		if got := c.judgeProbe(Type{Spec: compression.Spec{Name: "zstd"}}, err); (got != nil) != test.isError {
			t.Errorf("%v: %v", test.err, got)
		}
		if warned := text.Len() > 0; warned != (test.err != nil && !test.isError) {
			t.Errorf("%v: logged %q", test.err, text.String())
		}
	}
}
