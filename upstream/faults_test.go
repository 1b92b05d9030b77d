package upstream_test

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"nar-herder/internal/mirrortest"
)

// raw is a handler that writes to the connection.
func raw(write func(conn net.Conn, n int)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		conn, buffer, err := http.NewResponseController(w).Hijack()
		if err != nil {
			panic(err)
		}
		defer conn.Close()
		go io.Copy(io.Discard, buffer)
		digits, _ := strings.CutSuffix(strings.TrimPrefix(r.URL.Path, "/"), ".narinfo")
		write(conn, numbers[digits])
	}
}

func redirects(status int, location string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Location", strings.ReplaceAll(location, "PATH", r.URL.Path))
		w.WriteHeader(status)
	}
}

// TestFaults: an upstream that lies, or whose answers are unusable, counts as one that can't
// tell, and the next one decides.
func TestFaults(t *testing.T) {
	t.Parallel()
	text := func(n int) string { return string(mirrortest.Narinfo(n, 1, n).Text) }
	says := func(answer func(n int) string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			digits, _ := strings.CutSuffix(strings.TrimPrefix(r.URL.Path, "/"), ".narinfo")
			io.WriteString(w, answer(numbers[digits]))
		}
	}
	endless := func(conn net.Conn, text string) {
		for err := error(nil); err == nil; _, err = io.WriteString(conn, strings.Repeat(text, 1000)) {
		}
	}
	for name, test := range map[string]struct {
		handler http.HandlerFunc
		reason  string
		within  time.Duration
	}{
		"another narinfo":  {says(func(int) string { return text(77) }), "asked for the narinfo of", 0},
		"the next narinfo": {says(func(n int) string { return text(n + 1) }), "asked for the narinfo of", 0},
		"HTML":             {says(func(int) string { return "<!DOCTYPE html>\n<html><body>Welcome</body></html>\n" }), "narinfo: line 1", 0},
		"nothing":          {says(func(int) string { return "" }), "empty", 0},
		"trailing garbage": {says(func(n int) string { return text(n) + "\x00garbage" }), "NUL", 0},
		"no signature": {says(func(n int) string {
			before, _, _ := strings.Cut(text(n), "Signature")
			return before + "URL: nar/" + mirrortest.Path(n).BaseName() + "\nCompression: none\n"
		}), "signature", 0},
		"another item's nar": {says(func(n int) string {
			return strings.ReplaceAll(text(n), "nar/none/"+mirrortest.Path(n).BaseName(), "nar/none/"+mirrortest.Path(n+1).BaseName())
		}), "named after another item", 0},
		"a file that isn't a nar": {says(func(n int) string { return strings.ReplaceAll(text(n), "nar/none/", "../") }), "URL", 0},
		"half a narinfo": {raw(func(conn net.Conn, n int) {
			fmt.Fprintf(conn, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(text(n)), text(n)[:50])
		}), "closes the connection", 0},
		"endless body": {raw(func(conn net.Conn, n int) {
			io.WriteString(conn, "HTTP/1.1 200 OK\r\n\r\n"+text(n))
			endless(conn, "A: b\n")
		}), "too long", 0},
		"endless header": {raw(func(conn net.Conn, n int) { io.WriteString(conn, "HTTP/1.1 200 OK\r\n"); endless(conn, "A: b\r\n") }), "", 0},
		"endless 404": {raw(func(conn net.Conn, n int) {
			io.WriteString(conn, "HTTP/1.1 404 Not Found\r\n\r\n")
			endless(conn, "A: b\n")
		}), "too long", 0},
		"one byte a second": {raw(func(conn net.Conn, n int) {
			for _, b := range []byte("HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n" + text(n)) {
				time.Sleep(time.Second)
				if _, err := conn.Write([]byte{b}); err != nil {
					return
				}
			}
		}), "in time", 10 * time.Second},
		"closes at once":     {raw(func(net.Conn, int) {}), "closes the connection", 0},
		"not HTTP":           {raw(func(conn net.Conn, n int) { io.WriteString(conn, "SSH-2.0-OpenSSH_9.2\r\n") }), "not HTTP/1.1", 0},
		"to loopback":        {redirects(302, "http://127.0.0.1:1/x.narinfo"), "--allow-private-redirects", 0},
		"to loopback, https": {redirects(301, "https://127.0.0.1:1/x.narinfo"), "--allow-private-redirects", 0},
		"to another server":  {redirects(307, "http://2.examplePATH"), "--allow-private-redirects", 0},
		"to a file":          {redirects(302, "file:///etc/passwd"), "it redirects to", 0},
		"in a circle":        {redirects(302, "PATH"), "it redirects to", 0},
		"to nowhere":         {redirects(302, ":// http://user:secret@x"), "not a valid URL", 0},
		"to nothing":         {redirects(302, ""), "302", 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				for _, other := range []struct {
					handler http.HandlerFunc
					want    string
				}{{nil, "unknown, unsaid"}, {has(20, 2), "version 2 of 1, 1h0m0s"}, {has(0, 2), "absent, 1m0s"}} {
					hosts := network{"0.example": test.handler}
					if other.handler != nil {
						hosts["1.example"] = other.handler
					}
					s := hosts.open(t, nil)
					begun := time.Now()
					for _, a := range ask(t, s, hashes(1, 11)) {
						if got := describe(s, a); got != other.want {
							t.Errorf("%s (%v), want %s", got, a.Err, other.want)
						}
						if other.handler == nil && (!strings.Contains(a.Err.Error(), test.reason) || strings.Contains(a.Err.Error(), "secret")) {
							t.Errorf("%v, want %s", a.Err, test.reason)
						}
					}
					if took := time.Since(begun); took > test.within {
						t.Errorf("after %s", took)
					}
				}
				time.Sleep(time.Hour) // until the slow ones have ended
			})
		})
	}
}
