package logonce

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"
	"time"
)

// TestOver: the end of a trouble is logged once, and a new trouble at once.
func TestOver(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	log := slog.New(slog.NewTextHandler(&out, nil))
	var f Filter
	now := time.Unix(1e9, 0)
	f.Over(log, "over")
	for range 2 {
		f.Log(log, slog.LevelWarn, now, "trouble")
		f.Log(log, slog.LevelWarn, now, "trouble")
		f.Over(log, "over")
		f.Over(log, "over")
	}
	if got := out.String(); strings.Count(got, "msg=trouble") != 2 || strings.Count(got, "msg=over") != 2 {
		t.Errorf("%s", got)
	}
}
