package accesslog

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"nar-herder/httpapi/measured"
	"nar-herder/internal/redact"
)

var began = time.Date(2026, 11, 27, 12, 0, 0, 5e6, time.UTC)

func answerTo(r measured.Request) measured.Answer {
	r.Time = began
	return measured.Answer{Kind: measured.Kind{Status: 206}, Count: 1, Request: &r, Sent: 100, FirstByte: time.Millisecond, Duration: 1500 * time.Millisecond}
}

func lineOf(l Log, a measured.Answer) string {
	var out bytes.Buffer
	l.Out, l.Route = &out, func(int) string { return "/nar/" }
	l.Finished([]measured.Answer{a})
	return out.String()
}

func TestFormats(t *testing.T) {
	t.Parallel()
	a := answerTo(measured.Request{
		Client: "192.0.2.1", Peer: "192.0.2.1:4000", Method: "GET", Target: "/nar/lzip/x", Protocol: "HTTP/1.1", Host: "farm.example", Range: "bytes=0-99", UserAgent: "curl/8",
	})
	cut := a
	cut.Cut = true
	for want, got := range map[string]string{
		`192.0.2.1 - - [27/Nov/2026:12:00:00 +0000] "GET /nar/lzip/x HTTP/1.1" 206 100 "-" "curl/8" "bytes=0-99" 1.500000`:                                                                                                                                                                       lineOf(Log{Format: Combined}, a),
		`{"time":"2026-11-27T12:00:00.005Z","client":"192.0.2.1","method":"GET","path":"/nar/lzip/x","protocol":"HTTP/1.1","host":"farm.example","route":"/nar/","status":206,"bytes":100,"first_byte_seconds":0.001000,"duration_seconds":1.500000,"range":"bytes=0-99","user_agent":"curl/8"}`: lineOf(Log{Format: JSON}, a),
		`time=2026-11-27T12:00:01.505Z level=DEBUG msg=request method=GET path=/nar/lzip/x status=206 bytes=100 cut=true duration=1.5s range="bytes=0-99" client=192.0.2.1:4000`:                                                                                                                 lineOf(Log{Format: Debug}, cut),
		`level=DEBUG msg=request method=GET path=/nar/lzip/x status=206 bytes=100 duration=1.5s range="bytes=0-99" client=192.0.2.1:4000`:                                                                                                                                                        lineOf(Log{Format: Debug, Untimed: true}, a),
	} {
		if got != want+"\n" {
			t.Errorf("got  %s\nwant %s", got, want)
		}
	}
	a.Request = nil
	if got := lineOf(Log{}, a); got != "" {
		t.Errorf("without a request: %q", got)
	}
}

// TestInjection: nothing that a client sends ends a quotation or a line, and secrets in URLs are
// not logged.
func TestInjection(t *testing.T) {
	t.Parallel()
	for _, text := range []string{
		"\"", `\`, "\n", "a\r\nb", "\x00\x1b[31m", "\x7f", "\xff\xfe", "ü", "\u2028", "\u009b31m", "\u202e", `" 200 0 "-" "-`, `\x22`, "a=b", " ", "", "</script>", `{"a":1}`,
	} {
		a := answerTo(measured.Request{Client: "192.0.2.1", Peer: "192.0.2.1:1", Method: text, Target: "/" + text, Protocol: text, Host: text, Range: text, Referer: text, UserAgent: text})
		combined := lineOf(Log{Format: Combined}, a)
		if strings.Count(combined, "\n") != 1 || strings.Count(combined, `"`) != 8 || strings.ContainsFunc(combined[:len(combined)-1], func(r rune) bool { return r < ' ' || r > '~' }) {
			t.Errorf("%q: combined %q", text, combined)
		}
		debug := lineOf(Log{Format: Debug}, a)
		if strings.Count(debug, "\n") != 1 || strings.ContainsFunc(debug[:len(debug)-1], func(r rune) bool { return r < ' ' || r == 0x7f }) {
			t.Errorf("%q: debug %q", text, debug)
		}
		for _, format := range []Format{JSON, DebugJSON} {
			line := lineOf(Log{Format: format}, a)
			var got map[string]any
			if err := json.Unmarshal([]byte(line), &got); err != nil || redact.Visible(line[:len(line)-1]) != line[:len(line)-1] {
				t.Errorf("%q: JSON %q: %v", text, line, err)
			} else if want := strings.ToValidUTF8("/"+text, "\uFFFD"); got["path"] != want {
				t.Errorf("%q: path %q", text, got["path"])
			}
		}
	}
	for _, url := range []string{"http://user:hunter2@farm.example/x", "/x?token=hunter2", "/?u=http%3A%2F%2Fme:hunter2%40x"} {
		a := answerTo(measured.Request{Method: "GET", Target: url, Referer: url, Host: strings.TrimPrefix(url, "http://")})
		for _, format := range []Format{Combined, JSON, Debug, DebugJSON} {
			if line := lineOf(Log{Format: format}, a); strings.Contains(line, "hunter2") {
				t.Errorf("%s", line)
			}
		}
	}
}
