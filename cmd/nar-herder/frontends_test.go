package main

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"nar-herder/internal/s3server"
)

// farm is a primary, which is the first instance, and front ends with one bucket, behind
// nginx.
type farm struct {
	*instances
	targets []string // of narinfos, in the order of their import
	front   string   // nginx's address

	asked, cut, failed atomic.Int64
}

// newFarm starts a farm with the first nars of count.
func newFarm(t *testing.T, frontEnds, count, first int) *farm {
	t.Helper()
	nginx := required(t, "nginx")
	bucket := s3server.New(t).URL("nars/farm")
	f := &farm{instances: &instances{t: t, run: command, options: make([][]string, 1+frontEnds), servers: make([]*server, 1+frontEnds)}}
	f.source, f.texts, f.targets = generated(t, count)
	for i := range f.servers {
		p := newPlace(t)
		p.storage = bucket
		f.places, f.hosts = append(f.places, p), append(f.hosts, ownHost())
		f.options[i] = []string{"--host=" + f.hosts[i], "--port=" + instancePort, "--log-level=INFO", "--database-dump-interval=1s"}
		if i > 0 {
			f.options[i] = append(f.options[i], "--mirror=http://"+f.address(0), "--storage-read-only")
		}
	}
	f.places[0].imports(t, f.files(0, first)...)
	f.places[0].makeDump(t)
	upstream := ""
	for i := range f.servers {
		f.start(i)
		upstream += fmt.Sprintf("server %s max_fails=1 fail_timeout=1s;\n", f.address(i))
	}
	for i := range f.servers {
		f.has(i, first)
	}
	host := ownHost()
	startNginx(t, nginx, host+":8735", fmt.Sprintf(`upstream herders { %s keepalive 16; }
		server {
			listen %s:8735;
			location / {
				proxy_pass http://herders; proxy_http_version 1.1; proxy_set_header Connection "";
				proxy_next_upstream error timeout http_502 http_503; proxy_connect_timeout 1s;
			}
			location /nar/ {
				proxy_pass http://herders; proxy_http_version 1.1; proxy_set_header Connection "";
				proxy_next_upstream error timeout http_502 http_503 http_404; proxy_connect_timeout 1s;
			}
		}`, upstream, host))
	f.front = host + ":8735"
	return f
}

// files returns the narinfo files of the items in a range.
func (f *farm) files(from, to int) (files []string) {
	for _, target := range f.targets[from:to] {
		files = append(files, filepath.Join(f.source, target))
	}
	return files
}

// has waits until an instance has the first count items.
func (f *farm) has(i, count int) {
	f.t.Helper()
	until(f.t, fmt.Sprintf("instance %d has %d items", i, count), func() bool {
		got, err := tryGet(f.address(i), f.targets[count-1])
		return err == nil && got.StatusCode == http.StatusOK
	})
}

// load requests narinfos and nars from nginx with many clients until it is stopped. No
// client may get a wrong nar or a 404; a cut download resumes with the rest of the same
// nar.
func (f *farm) load(clients, count int) (stop func()) {
	done := make(chan struct{})
	var asking sync.WaitGroup
	for range clients {
		asking.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
				}
				target := f.targets[rand.IntN(count)]
				f.asked.Add(1)
				if err := f.fetch(target); err != nil {
					f.failed.Add(1)
					f.t.Errorf("%s: %v", target, err)
				}
			}
		})
	}
	return func() {
		close(done)
		asking.Wait()
	}
}

// fetch downloads a narinfo and its nar.
func (f *farm) fetch(target string) error {
	got, err := tryGet(f.front, target)
	if err != nil || got.StatusCode != http.StatusOK || got.body != f.texts[target] {
		return fmt.Errorf("its narinfo: %q, %w", got.body, cmp.Or(err, errWrong))
	}
	return f.fetchNar(target)
}

// fetchNar downloads the nar of an item.
func (f *farm) fetchNar(target string) error {
	name := "/nar/" + strings.TrimSuffix(strings.TrimPrefix(target, "/"), ".narinfo") + "-item"
	want, err := os.ReadFile(filepath.Join(f.source, name))
	if err != nil {
		return err
	}
	const tries = 4
	var have []byte
	tag := ""
	for range tries {
		if have, tag, err = f.rest(name, have, tag); err == nil {
			break
		}
		f.cut.Add(1)
	}
	if err == nil && string(have) != string(want) {
		err = fmt.Errorf("got %d bytes, which differ from the %d bytes of the nar", len(have), len(want))
	}
	return err
}

var errWrong = errors.New("that is not what was imported")

// rest downloads the missing part of a nar.
func (f *farm) rest(name string, have []byte, tag string) ([]byte, string, error) {
	request, err := http.NewRequest(http.MethodGet, "http://"+f.front+name, nil)
	if err != nil {
		return have, tag, err
	}
	if len(have) > 0 {
		request.Header.Set("Range", "bytes="+strconv.Itoa(len(have))+"-")
		request.Header.Set("If-Range", tag)
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return have, tag, err
	}
	defer response.Body.Close()
	switch {
	case response.StatusCode == http.StatusOK && len(have) > 0:
		return nil, "", errors.New("the front ends give one nar different tags")
	case response.StatusCode != http.StatusOK && response.StatusCode != http.StatusPartialContent:
		return have, tag, errors.New(response.Status)
	}
	body, err := io.ReadAll(response.Body)
	return append(have, body...), response.Header.Get("ETag"), err
}

// TestFrontEnds kills a primary and front ends behind nginx while clients request
// everything: no client gets a wrong nar or a 404, and the bucket has exactly the imported
// nars.
func TestFrontEnds(t *testing.T) {
	t.Parallel()
	const count, first = 120, 100
	f := newFarm(t, 3, count, first)
	stop := f.load(8, first)
	pause := func() {
		t.Helper()
		before := f.asked.Load()
		until(t, "clients send requests", func() bool { return f.asked.Load() >= before+100 })
	}
	pause()
	for n := range kills(t) / 3 {
		victim := n % 2 // the primary, and a front end
		f.kill(victim)
		pause()
		f.start(victim)
		if n < count-first {
			f.places[0].imports(t, f.files(first+n, first+n+1)...)
		}
		pause()
	}
	stop()
	f.places[0].imports(t, f.files(first, count)...)
	f.has(1, count) // the others may not have them yet
	for _, target := range f.targets[first:] {
		if err := f.fetchNar(target); err != nil {
			t.Errorf("%s, which one front end serves: %v", target, err)
		}
	}
	for i := range f.servers {
		f.has(i, count)
	}
	for _, target := range f.targets {
		if err := f.fetch(target); err != nil {
			t.Errorf("%s: %v", target, err)
		}
	}
	t.Logf("%d nars requested, %d resumed, %d failed", f.asked.Load(), f.cut.Load(), f.failed.Load())
	if f.asked.Load() < 100 {
		t.Errorf("only %d nars were requested", f.asked.Load())
	}
	for _, s := range f.servers {
		s.stop(t, syscall.SIGTERM)
	}
	r := runProgram(t, f.places[0].args("check", "--verify")...)
	if want := fmt.Sprintf("%d files verified", count); r.status != 0 || !strings.Contains(r.out, want) {
		t.Errorf("check: %+v, want %s", r, want)
	}
}
