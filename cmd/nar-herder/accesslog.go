package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"strings"
	"syscall"

	"github.com/prometheus/client_golang/prometheus"

	"nar-herder/httpapi"
	"nar-herder/httpapi/accesslog"
	"nar-herder/internal/logwriter"
)

// logOptions are options of the server's logs.
type logOptions struct {
	LogFormat string `group:"logging" default:"text" enum:"text,json" placeholder:"text|json" help:"Format of the log: text, or a JSON object per line (default: ${default})."`
	AccessLog string `group:"logging" default:"off" placeholder:"off|stderr|FILE" help:"Where to log each request, with its duration, bytes and client: stderr, or a file, which is reopened at SIGHUP. The format is that of nginx and Apache named combined, followed by range and seconds; or JSON with --log-format=json (default: ${default})."`
}

// Values of --access-log that are not files.
const (
	accessLogOff    = "off"
	accessLogStderr = "stderr"
)

// serverLogs are the logs of a server.
type serverLogs struct {
	*slog.Logger
	out      *logwriter.Writer
	requests accesslog.Logs // nil if requests are not logged
	// access is the writer of the access log; nil if it has none of its own.
	access *logwriter.Writer
	file   string
}

// openLogs opens the logs, which must be closed.
func (c *serverCommand) openLogs(stderr io.Writer) (*serverLogs, error) {
	l := &serverLogs{file: c.AccessLog}
	level := slog.Level(c.LogLevel)
	l.Logger, l.out = newLogger(stderr, level, c.LogFormat)
	access := &accesslog.Log{Format: accesslog.Combined, Route: httpapi.RouteName}
	debug := &accesslog.Log{Out: l.out, Format: accesslog.Debug, Route: httpapi.RouteName, Untimed: isJournal(stderr)}
	if c.LogFormat == "json" {
		access.Format, debug.Format = accesslog.JSON, accesslog.DebugJSON
	}
	switch c.AccessLog {
	case accessLogStderr:
		access.Out, access.Untimed = l.out, debug.Untimed
		l.requests = accesslog.Logs{access}
		return l, nil // which has all that the lines of level DEBUG have
	case accessLogOff:
	default:
		file, err := openAccessLog(c.AccessLog)
		if err != nil {
			l.close()
			return nil, fmt.Errorf("--access-log=%s: %w", c.AccessLog, err)
		}
		l.access = logwriter.New(file)
		l.access.Trouble = func(err error) {
			l.Warn("lines of the access log are dropped until its file takes them: is the disk full or slow?", "file", l.file, "error", err)
		}
		l.access.Over = func(dropped int64) {
			l.Info("the access log is written again", "file", l.file, "dropped", dropped)
		}
		access.Out = l.access
		l.requests = append(l.requests, access)
	}
	if level <= slog.LevelDebug {
		l.requests = append(l.requests, debug)
	}
	return l, nil
}

// reopen opens the file of the access log anew, after it was renamed.
func (l *serverLogs) reopen() {
	if l.access == nil {
		return
	}
	file, err := openAccessLog(l.file)
	if err != nil {
		l.Warn("can't reopen the access log: the file that is open stays in use", "file", l.file, "error", err)
		return
	}
	l.access.Replace(file)
	l.Info("access log reopened", "file", l.file)
}

func (l *serverLogs) close() {
	if l.access != nil {
		l.access.Close()
	}
	l.out.Close()
}

// collectors returns the metrics of the logs.
func (l *serverLogs) collectors() (all []prometheus.Collector) {
	for name, out := range map[string]*logwriter.Writer{"log": l.out, "access": l.access} {
		if out != nil {
			all = append(all, prometheus.NewCounterFunc(prometheus.CounterOpts{
				Name: "narherder_log_lines_dropped_total", Help: "Lines that were not logged, because the output did not take them.",
				ConstLabels: prometheus.Labels{"log": name},
			}, func() float64 { return float64(out.Dropped()) }))
		}
	}
	return all
}

// openAccessLog opens a file to append to it. It refuses a file with anything else than lines of
// an access log, which would be damaged. It doesn't wait for the reader of a pipe.
func openAccessLog(name string) (io.WriteCloser, error) {
	if !strings.ContainsAny(name, "./") {
		return nil, errors.New("want off, stderr, or a file, such as ./access.log")
	}
	info, err := os.Stat(name)
	if err == nil && info.Mode().IsRegular() && info.Size() > 0 {
		if err := isAccessLog(name); err != nil {
			return nil, err
		}
	}
	file, err := os.OpenFile(name, os.O_WRONLY|os.O_APPEND|os.O_CREATE|syscall.O_NONBLOCK, 0o640)
	var path *fs.PathError
	switch {
	case errors.Is(err, syscall.ENXIO):
		return nil, errors.New("nothing reads from this pipe or socket: name a file, or stderr")
	case errors.As(err, &path):
		return nil, path.Err
	}
	return file, err
}

func isAccessLog(name string) error {
	file, err := os.Open(name)
	if err != nil {
		return err
	}
	defer file.Close()
	begin := make([]byte, 100)
	n, err := file.Read(begin)
	if err != nil {
		return err
	}
	if begin = begin[:n]; !bytes.Contains(begin, []byte(" - - [")) && !bytes.HasPrefix(begin, []byte(`{"time":"`)) {
		return errors.New("the file exists and is not an access log: name another file")
	}
	return nil
}
