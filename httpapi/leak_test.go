package httpapi

import (
	"context"
	"io"
	"net/http"
	"os"
	"runtime"
	"strings"
	"testing"

	"nar-herder/internal/eventloop"
)

// openFiles counts the file descriptors of this process.
func openFiles(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Skip(err)
	}
	return len(entries)
}

// TestNoLeaks sends requests of every kind, read to the end and cut in the middle: nothing is
// left when the server has stopped. It is not parallel, as it counts descriptors and
// goroutines of the process.
func TestNoLeaks(t *testing.T) {
	dir := t.TempDir()
	plain := make1(t, "plain", strings.Repeat("plain", 1<<20), "none")
	packed := make1(t, "packed", strings.Repeat("packed", 1<<20), "gzip")
	broken := make1(t, "broken", strings.Repeat("broken", 1<<10), "gzip")
	broken.narHash[0] ^= 1
	s := newStore(t, plain.write(t, dir), packed.write(t, dir), broken.write(t, dir))
	startEventLoop(t) // it never ends
	files, goroutines := openFiles(t), runtime.NumGoroutine()

	server := newStarted(s, options())
	listener := listenTCP(t)
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(ctx, listener) }()
	for n := range 30 {
		for _, m := range []*made{plain, packed, broken} {
			for _, target := range []string{"/" + m.url(), "/nar/" + m.path.BaseName(), "/file/" + m.path.Name + "/sha256/" + m.digest, "/" + m.path.Hash.String() + ".narinfo/info"} {
				c := connect(t, listener)
				header := []string{"", "Range: bytes=5-9", "Range: bytes=99999999-", `If-None-Match: *`, `If-Range: "x"`}[n%5]
				method := []string{"GET", "HEAD", "GET"}[n%3]
				c.send(request(method, target, append([]string{"X-Y: z"}, header)[:1+min(len(header), 1)]...))
				if response, err := http.ReadResponse(c.r, &http.Request{Method: method}); err == nil && n%2 == 0 {
					_, _ = io.Copy(io.Discard, response.Body)
				}
				c.Close()
			}
		}
	}
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	until(t, "decoders are given back", func() bool { return server.checker.Options.Decoders.Memory() == 0 })
	until(t, "files are closed", func() bool { return openFiles(t) <= files })
	// fasthttp keeps a goroutine for the time, and for some seconds one for idle workers.
	const ofEngine = 2
	until(t, "goroutines end", func() bool { return runtime.NumGoroutine() <= goroutines+ofEngine })
}

// startEventLoop serves a connection, which starts the event loop of the process.
func startEventLoop(t *testing.T) {
	t.Helper()
	listener := listenTCP(t)
	defer listener.Close()
	dial(t, listener.Addr().String())
	accepted, err := listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	c, err := eventloop.Take(accepted)
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
}
