package s3

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// poolServer counts connections, and chooses the response by the path.
func poolServer(t *testing.T, secure bool) (s *httptest.Server, l *pool, connections *atomic.Int64) {
	t.Helper()
	connections = new(atomic.Int64)
	s = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/hints":
			w.Header().Set("Link", "</x>")
			w.WriteHeader(http.StatusEarlyHints)
			fmt.Fprint(w, "after hints")
		case "/chunks":
			w.(http.Flusher).Flush()
			fmt.Fprint(w, "in chunks")
		case "/close":
			w.Header().Set("Connection", "close")
			fmt.Fprint(w, "the last")
		case "/cut":
			w.Header().Set("Content-Length", "100")
			fmt.Fprint(w, "too short")
			panic(http.ErrAbortHandler)
		case "/stalls":
			w.Header().Set("Content-Length", "100")
			fmt.Fprint(w, "begun")
			w.(http.Flusher).Flush()
			<-r.Context().Done()
		case "/silent":
			<-r.Context().Done()
		case "/empty":
			w.WriteHeader(http.StatusNoContent)
		default:
			fmt.Fprintf(w, "%s %s %s %s", r.Method, r.URL.EscapedPath(), r.Host, r.Header.Get("Range"))
		}
	}))
	l = &pool{head: 30 * time.Second}
	// Count here: the server may notice a connection only after the client has closed it.
	l.dialer.Control = func(string, string, syscall.RawConn) error {
		connections.Add(1)
		return nil
	}
	if secure {
		s.StartTLS()
		roots := x509.NewCertPool()
		roots.AddCert(s.Certificate())
		l.tls = &tls.Config{RootCAs: roots}
	} else {
		s.Start()
	}
	t.Cleanup(func() { l.close(); s.CloseClientConnections(); s.Close() })
	return s, l, connections
}

func poolGet(ctx context.Context, l *pool, url string) (string, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	request.Header.Set("Range", "bytes=1-2")
	response, err := l.RoundTrip(request)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	return string(body), err
}

// TestPool: consecutive requests use one connection, and no bytes of a response remain for the
// next.
func TestPool(t *testing.T) {
	t.Parallel()
	for _, secure := range []bool{false, true} {
		s, l, connections := poolServer(t, secure)
		host := strings.SplitN(s.URL, "://", 2)[1]
		for range 3 {
			for path, want := range map[string]string{
				"/a%20b/c+d": "GET /a%20b/c+d " + host + " bytes=1-2", "/hints": "after hints", "/chunks": "in chunks", "/empty": "",
			} {
				if got, err := poolGet(t.Context(), l, s.URL+path); err != nil || got != want {
					t.Errorf("%s: %q, %v; want %q", path, got, err, want)
				}
			}
		}
		if n := connections.Load(); n != 1 {
			t.Errorf("secure %v: %d connections, want one", secure, n)
		}
		// The server closes the connection, with or without "Connection: close".
		if got, err := poolGet(t.Context(), l, s.URL+"/close"); err != nil || got != "the last" {
			t.Errorf("the last response: %q, %v", got, err)
		}
		for range 2 {
			if _, err := poolGet(t.Context(), l, s.URL+"/x"); err != nil {
				t.Errorf("after the last response: %v", err)
			}
		}
		s.CloseClientConnections()
		if _, err := poolGet(t.Context(), l, s.URL+"/x"); err != nil {
			t.Errorf("after the server has ended idle connections: %v", err)
		}
		if n := connections.Load(); n != 3 {
			t.Errorf("secure %v: %d connections, want 3", secure, n)
		}
	}
}

// TestPoolFail: faults are errors without a delay, and their connection is not reused.
func TestPoolFail(t *testing.T) {
	t.Parallel()
	s, l, connections := poolServer(t, false)
	if got, err := poolGet(t.Context(), l, s.URL+"/cut"); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("cut: %q, %v", got, err)
	}
	for _, path := range []string{"/stalls", "/silent"} {
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(10*time.Millisecond, cancel)
		if got, err := poolGet(ctx, l, s.URL+path); err == nil {
			t.Errorf("%s: %q", path, got)
		}
	}
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := poolGet(cancelled, l, s.URL+"/x"); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled before: %v", err)
	}
	l.head = time.Millisecond
	if _, err := poolGet(t.Context(), l, s.URL+"/silent"); err == nil {
		t.Error("without a head: no error")
	}
	l.head = 30 * time.Second
	before := connections.Load()
	if _, err := poolGet(t.Context(), l, s.URL+"/x"); err != nil || connections.Load() != before+1 {
		t.Errorf("afterwards: %v, %d connections more, want a new one", err, connections.Load()-before)
	}
	// A body that isn't read to EOF.
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.URL+"/x", nil)
	if err != nil {
		t.Fatal(err)
	}
	response, err := l.RoundTrip(request)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(response.Body.Close(), response.Body.Close()); err != nil {
		t.Error(err)
	}
	if got, err := poolGet(t.Context(), l, s.URL+"/y"); err != nil || !strings.HasPrefix(got, "GET /y ") {
		t.Errorf("after an unread response: %q, %v", got, err)
	}
	s.CloseClientConnections()
	s.Close()
	if _, err := poolGet(t.Context(), l, s.URL+"/x"); err == nil {
		t.Error("without a server: no error")
	}
}

// TestPoolConcurrent: concurrent requests get their own responses, and the number of idle
// connections is bounded.
func TestPoolConcurrent(t *testing.T) {
	t.Parallel()
	s, l, _ := poolServer(t, false)
	var asking sync.WaitGroup
	for i := range 2 * idleConnections {
		asking.Go(func() {
			for n := range 5 {
				path := fmt.Sprintf("/%d/%d", i, n)
				if got, err := poolGet(t.Context(), l, s.URL+path); err != nil || !strings.HasPrefix(got, "GET "+path+" ") {
					t.Errorf("%s: %q, %v", path, got, err)
				}
			}
		})
	}
	asking.Wait()
	kept := 0
	for _, pool := range l.idle {
		kept += len(pool)
	}
	if kept == 0 || kept > idleConnections {
		t.Errorf("%d idle connections, want at most %d", kept, idleConnections)
	}
	l.close()
	if got, err := poolGet(t.Context(), l, s.URL+"/x"); err != nil || got == "" || len(l.idle) > 0 {
		t.Errorf("after Close: %q, %v, %d idle", got, err, len(l.idle))
	}
}
