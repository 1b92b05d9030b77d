package eviction

import (
	"bytes"
	"container/list"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"nar-herder/compression"
	"nar-herder/httpapi"
	"nar-herder/mirror/nars"
	"nar-herder/removal"
)

// TestZipf: clients request nars with a Zipf distribution through a limit of a tenth of all nars.
// The disk takes no more than the limit and the nars in flight, every nar is right, and as many
// requests find their nar stored as with an ideal LRU cache of that size.
// NAR_HERDER_EVICTION is the total size of the nars in bytes.
func TestZipf(t *testing.T) {
	t.Parallel()
	const clients = 4
	total, average, dir := int64(50_000_000), int64(50_000), ""
	if text := os.Getenv("NAR_HERDER_EVICTION"); text != "" {
		var err error
		if total, err = strconv.ParseInt(text, 10, 64); err != nil {
			t.Fatal(err)
		}
		average, dir = 1_000_000, t.TempDir()
	} else {
		dir = memoryDir(t)
	}
	count, limit := int(total/average), total/10
	random := rand.New(rand.NewPCG(1, 2))
	items := make([]nar, count)
	upstream := &source{sizes: make(map[string]int64)}
	var largest int64
	for n := range items {
		items[n] = nar{n, average/5 + random.Int64N(average*8/5)}
		upstream.sizes[items[n].base()] = items[n].size
		largest = max(largest, items[n].size)
	}
	sequence := requests(random, count)

	c := openCache(t, dir, memoryDir(t))
	for begin := 0; begin < count; begin += 500 {
		c.put(items[begin:min(begin+500, count)], upstreamURL, time.Now().Add(-time.Hour), false)
	}
	own := nar{count, average}
	c.put([]nar{own}, "", time.Now().Add(-1000*time.Hour), true)
	e := c.evictor(Options{Limit: limit})
	fetcher, err := nars.New(c.Storage, upstream, nars.Options{Limit: limit, MakeRoom: e.MakeRoom, Log: c.logger(),
		Decode: func(_ context.Context, kind string, compressed io.Reader, _ int64) (io.ReadCloser, error) {
			return compression.NewReader(kind, compressed)
		}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(fetcher.Close)
	remover := removal.New(c.Storage, removal.Options{Limit: limit, MinimumFree: -1, Evictor: e, Interval: time.Second, Log: c.logger()})
	changes, err := c.index.Watch(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	server := httpapi.New(c.Storage, httpapi.Options{Identity: c.Storage, Uses: c.uses, Remote: fetcher})
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	var most atomic.Int64
	var running sync.WaitGroup
	for _, run := range []func(){
		func() { remover.Run(ctx) },
		func() { c.uses.Run(ctx) },
		func() { server.Follow(ctx, changes) },
		func() {
			if err := server.Serve(ctx, listener); err != nil {
				t.Error(err)
			}
		},
		func() {
			for ctx.Err() == nil {
				most.Store(max(most.Load(), onDisk(dir)))
				time.Sleep(5 * time.Millisecond)
			}
		},
	} {
		running.Go(run)
	}
	defer func() {
		stop()
		running.Wait()
		if err := changes.Close(); err != nil {
			t.Error(err)
		}
	}()

	begun := time.Now()
	queue := make(chan int)
	var asking sync.WaitGroup
	for range clients {
		asking.Go(func() {
			for n := range queue {
				if err := get("http://"+listener.Addr().String(), items[n]); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for _, n := range sequence {
		queue <- n
	}
	close(queue)
	asking.Wait()
	took := time.Since(begun)
	stop() // so that nothing is evicted while the states are read
	running.Wait()

	hits := 1 - float64(upstream.fetched)/float64(len(sequence))
	want := simulate(items, sequence, limit)
	t.Logf("%d requests for %d nars took %v; hit rate %.3f, ideal %.3f; at most %d bytes of %d on the disk; evicted %d bytes",
		len(sequence), count, took.Round(time.Millisecond), hits, want, most.Load(), limit, e.Evicted())
	if hits < 0.95*want || hits > 1.05*want {
		t.Errorf("hit rate %.3f, want %.3f", hits, want)
	}
	if allowed := limit + clients*blocks(largest); most.Load() > allowed {
		t.Errorf("the disk had %d bytes, want at most %d", most.Load(), allowed)
	}
	if e.Evicted() < limit {
		t.Errorf("only %d bytes were evicted", e.Evicted())
	}
	if state := c.state(0, count); strings.Contains(state, "-") || strings.Contains(state, "!") || !strings.HasSuffix(state, "s") {
		t.Errorf("states %s", state)
	}
	c.wantConsistent()
}

// requests returns a random sequence of requests for count nars: the Nth most popular one is
// requested about 1/N as often as the most popular one.
func requests(random *rand.Rand, count int) []int {
	popular := random.Perm(count)
	sums := make([]float64, count)
	sum := 0.0
	for i := range sums {
		sum += 1 / float64(i+1)
		sums[i] = sum
	}
	sequence := make([]int, 2*count)
	for i := range sequence {
		at, below := random.Float64()*sum, 0
		for above := count - 1; below < above; {
			if middle := (below + above) / 2; sums[middle] < at {
				below = middle + 1
			} else {
				above = middle
			}
		}
		sequence[i] = popular[below]
	}
	return sequence
}

// simulate returns the hit rate of an ideal LRU cache.
func simulate(items []nar, sequence []int, limit int64) float64 {
	recent, places := list.New(), make(map[int]*list.Element)
	usage, hits := int64(0), 0
	for _, n := range sequence {
		if place, ok := places[n]; ok {
			hits++
			recent.MoveToFront(place)
			continue
		}
		for usage+blocks(items[n].size) > limit {
			oldest := recent.Remove(recent.Back()).(int)
			delete(places, oldest)
			usage -= blocks(items[oldest].size)
		}
		usage += blocks(items[n].size)
		places[n] = recent.PushFront(n)
	}
	return float64(hits) / float64(len(sequence))
}

// blocks is the disk space of a file.
func blocks(size int64) int64 { return (size + 4095) / 4096 * 4096 }

// onDisk returns the disk space of the files in a directory, including deleted ones that this
// process has open.
func onDisk(dir string) (usage int64) {
	count := func(info os.FileInfo, err error) {
		if err == nil && info.Mode().IsRegular() {
			usage += info.Sys().(*syscall.Stat_t).Blocks * 512
		}
	}
	_ = filepath.Walk(dir, func(_ string, info os.FileInfo, err error) error {
		count(info, err)
		return nil
	})
	open, _ := os.ReadDir("/proc/self/fd")
	for _, entry := range open {
		fd := "/proc/self/fd/" + entry.Name()
		if name, err := os.Readlink(fd); err == nil && strings.HasPrefix(name, dir) && strings.HasSuffix(name, " (deleted)") {
			count(os.Stat(fd))
		}
	}
	return usage
}

// get requests a nar and compares it.
func get(base string, item nar) error {
	answer, err := http.Get(base + "/nar/" + item.base())
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: status %s", item.base(), answer.Status)
	}
	want := item.reader()
	got, piece := make([]byte, 64<<10), make([]byte, 64<<10)
	var length int64
	for {
		n, err := io.ReadFull(answer.Body, got)
		length += int64(n)
		if _, err := io.ReadFull(want, piece[:n]); err != nil || !bytes.Equal(got[:n], piece[:n]) {
			return fmt.Errorf("%s: wrong bytes before %d", item.base(), length)
		}
		if err == io.EOF || err == io.ErrUnexpectedEOF && length == item.size {
			break
		} else if err != nil {
			return fmt.Errorf("%s: at %d: %w", item.base(), length, err)
		}
	}
	if length != item.size {
		return fmt.Errorf("%s: %d bytes, want %d", item.base(), length, item.size)
	}
	return nil
}
