// Package accesslog writes a line for each answer.
package accesslog

import (
	"bytes"
	"encoding/json"
	"io"
	"strconv"
	"strings"
	"sync"
	"time"

	"nar-herder/httpapi/measured"
	"nar-herder/internal/redact"
)

// Format is the form of the lines.
type Format int

const (
	// Combined is the format of Apache and nginx with that name, followed by the range in
	// quotes and the duration in seconds.
	Combined Format = iota
	// JSON is an object per line.
	JSON
	// Debug and DebugJSON are the lines of the server's own log, of level DEBUG.
	Debug
	DebugJSON
)

// Log is a log of answers. It is a [measured.Sink].
type Log struct {
	// Out takes whole lines, and must not wait.
	Out    io.Writer
	Format Format
	// Untimed leaves the time out, for an output that adds it.
	Untimed bool
	// Route returns the name of a route.
	Route func(int) string
}

// Logs are several logs. It is a [measured.Sink].
type Logs []*Log

// Finished implements [measured.Sink].
func (l Logs) Finished(answers []measured.Answer) {
	for _, log := range l {
		log.Finished(answers)
	}
}

var buffers = sync.Pool{New: func() any { return new([]byte) }}

// Finished implements [measured.Sink].
func (l *Log) Finished(answers []measured.Answer) {
	buffer := buffers.Get().(*[]byte)
	line := (*buffer)[:0]
	for i := range answers {
		if answers[i].Request != nil {
			line = l.append(line, &answers[i])
		}
	}
	_, _ = l.Out.Write(line) // drops lines rather than fail
	*buffer = line
	buffers.Put(buffer)
}

// append appends the line of an answer.
func (l *Log) append(line []byte, a *measured.Answer) []byte {
	switch l.Format {
	case Combined:
		line = appendCombined(line, a)
	case Debug:
		line = l.appendDebug(line, a)
	default:
		line = l.appendJSON(line, a)
	}
	return append(line, '\n')
}

func appendCombined(line []byte, a *measured.Answer) []byte {
	r := a.Request
	line = append(line, r.Client...)
	line = append(line, " - - ["...)
	line = r.Time.AppendFormat(line, "02/Jan/2006:15:04:05 -0700")
	line = append(line, `] "`...)
	line = appendEscaped(line, r.Method)
	line = append(line, ' ')
	line = appendEscaped(line, secretless(r.Target))
	line = append(line, ' ')
	line = appendEscaped(line, r.Protocol)
	line = append(line, `" `...)
	line = strconv.AppendInt(line, int64(a.Status), 10)
	line = append(line, ' ')
	line = strconv.AppendInt(line, a.Sent, 10)
	for _, field := range []string{secretless(r.Referer), r.UserAgent, r.Range} {
		if field == "" {
			field = "-"
		}
		line = append(line, ` "`...)
		line = appendEscaped(line, field)
		line = append(line, '"')
	}
	line = append(line, ' ')
	return strconv.AppendFloat(line, a.Duration.Seconds(), 'f', 6, 64)
}

// appendEscaped appends text that can't end a quotation or a line, escaped as nginx does.
func appendEscaped(line []byte, text string) []byte {
	const hex = "0123456789ABCDEF"
	for i := range len(text) {
		if c := text[i]; c < ' ' || c > '~' || c == '"' || c == '\\' {
			line = append(line, '\\', 'x', hex[c>>4], hex[c&15])
		} else {
			line = append(line, c)
		}
	}
	return line
}

// appendDebug appends a line in the form of [slog.TextHandler].
func (l *Log) appendDebug(line []byte, a *measured.Answer) []byte {
	r := a.Request
	if !l.Untimed {
		line = append(line, "time="...)
		line = r.Time.Add(a.Duration).UTC().AppendFormat(line, millis)
		line = append(line, ' ')
	}
	line = append(line, "level=DEBUG msg=request method="...)
	line = appendWord(line, r.Method)
	line = append(line, " path="...)
	line = appendWord(line, secretless(r.Target))
	line = append(line, " status="...)
	line = strconv.AppendInt(line, int64(a.Status), 10)
	line = append(line, " bytes="...)
	line = strconv.AppendInt(line, a.Sent, 10)
	if a.Cut {
		line = append(line, " cut=true"...)
	}
	line = append(line, " duration="...)
	line = append(line, a.Duration.Round(time.Microsecond).String()...)
	if r.Range != "" {
		line = append(line, " range="...)
		line = appendWord(line, r.Range)
	}
	line = append(line, " client="...)
	return appendWord(line, r.Peer)
}

// millis is the form of times in the log.
const millis = "2006-01-02T15:04:05.000Z07:00"

// appendWord appends a value, quoted if it could be taken for something else.
func appendWord(line []byte, text string) []byte {
	if text == "" {
		return append(line, `""`...)
	}
	for i := range len(text) {
		if c := text[i]; c <= ' ' || c > '~' || c == '"' || c == '\\' || c == '=' {
			return strconv.AppendQuote(line, text)
		}
	}
	return append(line, text...)
}

func (l *Log) appendJSON(line []byte, a *measured.Answer) []byte {
	r := a.Request
	text := func(name, value string) {
		if value != "" {
			line = append(line, name...)
			line = appendString(line, value)
		}
	}
	number := func(name string, value float64) {
		line = append(line, name...)
		line = strconv.AppendFloat(line, value, 'f', 6, 64)
	}
	line = append(line, '{')
	if !l.Untimed {
		line = append(line, `"time":"`...)
		line = r.Time.UTC().AppendFormat(line, time.RFC3339Nano)
		line = append(line, `",`...)
	}
	if l.Format == DebugJSON {
		line = append(line, `"level":"DEBUG","msg":"request",`...)
	}
	line = append(line, `"client":`...)
	line = appendString(line, r.Client)
	text(`,"method":`, r.Method)
	text(`,"path":`, secretless(r.Target))
	text(`,"protocol":`, r.Protocol)
	text(`,"host":`, secretless(r.Host))
	text(`,"route":`, l.Route(int(a.Route)))
	line = append(line, `,"status":`...)
	line = strconv.AppendInt(line, int64(a.Status), 10)
	line = append(line, `,"bytes":`...)
	line = strconv.AppendInt(line, a.Sent, 10)
	if a.Cut {
		line = append(line, `,"cut":true`...)
	}
	number(`,"first_byte_seconds":`, a.FirstByte.Seconds())
	number(`,"duration_seconds":`, a.Duration.Seconds())
	text(`,"range":`, r.Range)
	text(`,"referer":`, secretless(r.Referer))
	text(`,"user_agent":`, r.UserAgent)
	return append(line, '}')
}

// appendString appends a string of JSON.
func appendString(line []byte, text string) []byte {
	for i := range len(text) {
		if c := text[i]; c < ' ' || c > '~' || c == '"' || c == '\\' {
			var quoted bytes.Buffer
			_ = json.NewEncoder(redact.JSON{W: &quoted}).Encode(strings.ToValidUTF8(text, "\uFFFD")) // strings can always be encoded
			return append(line, bytes.TrimSuffix(quoted.Bytes(), []byte("\n"))...)
		}
	}
	line = append(line, '"')
	line = append(line, text...)
	return append(line, '"')
}

// secretless removes the secrets of a URL, which clients may send to the wrong server.
func secretless(url string) string {
	if strings.ContainsAny(url, "@=") || strings.Contains(url, "%40") {
		return redact.Text(url)
	}
	return url
}
