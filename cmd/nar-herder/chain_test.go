package main

import (
	"crypto/sha256"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"nar-herder/narinfo"
)

// chain is a series of instances; each mirrors the one before.
type chain struct {
	*instances
}

// newChain starts the instances. The first one is empty.
func newChain(t *testing.T, count int) *chain {
	t.Helper()
	c := &chain{&instances{t: t, run: command, options: make([][]string, count), servers: make([]*server, count)}}
	for i := range count {
		p := newPlace(t)
		c.places = append(c.places, p)
		c.hosts = append(c.hosts, ownHost())
		c.options[i] = []string{"--host=" + c.hosts[i], "--port=" + instancePort, "--log-level=INFO", "--ttl=1s", "--database-dump=" + p.dumpFile(), "--database-dump-interval=1s"}
		if i > 0 {
			c.options[i] = append(c.options[i], "--mirror=http://"+c.address(i-1))
		}
	}
	return c
}

// list returns the items that an instance lists.
func (c *chain) list(i int) []string {
	c.t.Helper()
	r := runProgram(c.t, "list", "--database="+c.places[i].database)
	if r.status != 0 {
		return []string{r.err} // it has no database yet
	}
	return slices.Sorted(strings.Lines(r.out))
}

// equal waits until all instances list the same items as the first.
func (c *chain) equal() {
	c.t.Helper()
	want := c.list(0)
	for i := 1; i < len(c.places); i++ {
		end := time.Now().Add(2 * patience)
		poll(c.t, "all have what the first has", 3*patience, longestPause, func() bool {
			if time.Now().After(end) {
				c.t.Fatalf("instance %d has\n%s\nthe first has\n%s\n%s", i, strings.Join(c.list(i), ""), strings.Join(want, ""), get(c.t, c.address(i), "/health").body)
			}
			return slices.Equal(c.list(i), want)
		})
	}
}

// TestMirrorChainKilled kills instances in a chain of three repeatedly, while items are
// imported at the first and removed from it. At the end all have the same items and
// complete nars.
func TestMirrorChainKilled(t *testing.T) {
	t.Parallel()
	const nars = 150
	c := newChain(t, 3)
	source, texts, targets := generated(t, nars)
	c.texts = texts
	file := func(n int) string { return filepath.Join(source, strings.TrimPrefix(targets[n], "/")) }
	c.places[0].imports(t, file(0), file(1), file(2))
	c.places[0].makeDump(t)
	c.start(0)
	for i := 1; i < 3; i++ {
		c.startMirror(i)
	}

	// Change the items meanwhile.
	stop := make(chan struct{})
	var changing sync.WaitGroup
	changing.Go(func() {
		random := rand.New(rand.NewPCG(1, 2))
		for n := 3; ; n++ {
			select {
			case <-stop:
				return
			case <-time.After(time.Duration(random.IntN(100)) * time.Millisecond):
			}
			args := c.places[0].args("import", "--keep", file(n%nars), file((n+1)%nars))
			if n%3 == 0 {
				_, hash, _ := strings.Cut(strings.TrimSuffix(targets[random.IntN(nars)], ".narinfo"), "/")
				args = c.places[0].args("remove", hash)
				if n%2 == 0 {
					args = append(args, "--now")
				}
			}
			within(args...).run(t) // the item may not exist
		}
	})
	for n := range kills(t) {
		time.Sleep(time.Duration(rand.IntN(700)) * time.Millisecond)
		i := rand.IntN(3)
		c.kill(i)
		if i == 0 {
			c.start(i)
		} else {
			c.startMirror(i)
		}
		if n%10 == 5 {
			c.whole(rand.IntN(3), false)
		}
	}
	close(stop)
	changing.Wait()
	c.equal()
	for i := range c.places {
		until(t, "all nars are stored", func() bool {
			return i == 0 || !strings.Contains(succeed(t, "list", "--database="+c.places[i].database, "--json"), `"stored":false`)
		})
		c.whole(i, true)
	}
	t.Logf("%d of %d items are left", len(c.list(0)), nars)
	for i := range c.servers {
		c.servers[i].stop(t, syscall.SIGTERM)
	}
	for _, p := range c.places {
		if r := runProgram(t, p.args("check", "--verify")...); r.status != 0 {
			t.Errorf("check: %+v", r)
		}
	}
}

// startMirror starts an instance that may have to bootstrap from its source.
func (c *chain) startMirror(i int) {
	c.t.Helper()
	c.servers[i] = &server{process: command(c.places[i].args("run-server", c.options[i]...)...)}
	c.servers[i].start(c.t)
}

// whole requests narinfos and their nars from an instance: no nar is wrong. With all, every
// listed item must be served.
func (c *chain) whole(i int, all bool) {
	c.t.Helper()
	listed := c.list(i)
	served := 0
	for target, text := range c.texts {
		got, err := tryGet(c.address(i), target)
		if err != nil || got.StatusCode != 200 {
			if all && got.Response != nil && got.StatusCode != 404 {
				c.t.Errorf("instance %d, %s: %s", i, target, got.Status)
			}
			continue
		}
		served++
		n, _ := narOf(c.t, text)
		if got.body != text {
			c.t.Errorf("instance %d, %s: %q", i, target, got.body)
		}
		got, err = tryGet(c.address(i), "/"+n.Files[0].URL)
		if err == nil && got.StatusCode == 200 && narinfo.NarHash(sha256.Sum256([]byte(got.body))) != n.NarHash {
			c.t.Errorf("instance %d, /%s: wrong nar", i, n.Files[0].URL)
		}
		if all && (err != nil || got.StatusCode != 200) {
			c.t.Errorf("instance %d, /%s: %v, %v", i, n.Files[0].URL, fmt.Sprint(got.Response), err)
		}
	}
	if all && served != len(listed) {
		c.t.Errorf("instance %d serves %d narinfos, and lists %d", i, served, len(listed))
	}
}
