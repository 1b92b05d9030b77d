package main

import (
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"nar-herder/internal/testlog"
)

// TestProgressLines: a long start, a command of which one item takes long, and one that counts
// nothing write a line each minute.
func TestProgressLines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		out := new(testlog.Buffer)
		s := &sockets{log: slog.New(newLogHandler(out, slog.LevelInfo))}
		ended := make(chan struct{})
		go s.logProgress(func() any { return map[string]int{"done": 7} }, ended)
		shown := newProgress(out, "importing", "narinfos", 9)
		shown.add(0)
		wait := newWait(out, "backing up")
		time.Sleep(2*progressEvery + time.Second)
		synctest.Wait()
		close(ended)
		shown.end()
		wait.end()
		time.Sleep(2 * progressEvery)
		got := out.String()
		if strings.Count(got, `level=INFO msg="still starting" state=map[done:7]`) != 2 || strings.Count(got, "importing: 1 of 9 narinfos, ") != 2 ||
			!strings.Contains(got, "backing up: 1m0s so far\n") || strings.Count(got, "backing up: ") != 2 {
			t.Errorf("%s", got)
		}
	})
}
