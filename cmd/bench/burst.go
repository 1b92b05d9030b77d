package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"time"
)

const (
	// burstItems are the narinfos that a client of Guix requests before it reads an answer.
	burstItems = 1000
	// burstDelay is the delay of each direction between the cache and its upstream.
	burstDelay = 25 * time.Millisecond
	// burstWait bounds a burst, and the wait until its items are written.
	burstWait = time.Minute
)

// burst measures bursts of requests for narinfos through a cache with a distant upstream.
func (b *bench) burst() (err error) {
	t, err := b.writeTree(b.rounds*burstItems, false)
	if err != nil {
		return err
	}
	origin, err := b.nginx(t.dir)
	if err != nil {
		return err
	}
	defer origin.stop()
	distant, err := delay(b.ctx, origin.address, burstDelay)
	if err != nil {
		return err
	}
	defer distant.Close()
	work, err := os.MkdirTemp(b.work, "burst-")
	if err != nil {
		return err
	}
	storage := filepath.Join(work, "storage")
	if err := os.Mkdir(storage, 0o755); err != nil {
		return err
	}
	cache, err := b.narHerder(filepath.Join(work, "cache.db"), storage, "--upstream=http://"+distant.Addr().String())
	if err != nil {
		return err
	}
	defer cache.stop()
	imported := filepath.Join(work, "imported.db")
	if _, err := b.importTree(imported, "", t.dir); err != nil {
		return err
	}
	plain, err := b.narHerder(imported, work)
	if err != nil {
		return err
	}
	defer plain.stop()

	var direct, unknown, known, stored, connected, connectedDirect []float64
	for round := range b.rounds {
		hashes := t.hashes[round*burstItems:][:burstItems]
		// nginx opens the files, and reads them, the first time.
		if _, _, err := b.burstAt(origin.address, hashes); err != nil {
			return err
		}
		for _, m := range []struct {
			address string
			times   *[]float64
		}{{distant.Addr().String(), &direct}, {cache.address, &unknown}, {cache.address, &known}, {plain.address, &stored}} {
			connecting, took, err := b.burstAt(m.address, hashes)
			if err != nil {
				return err
			}
			const ms = float64(time.Millisecond)
			*m.times = append(*m.times, float64(took)/ms)
			switch m.times {
			case &unknown:
				connected = append(connected, float64(connecting+took)/ms)
			case &direct: // the proxy can't delay the kernel's handshake
				connectedDirect = append(connectedDirect, float64(connecting+2*burstDelay+took)/ms)
			}
			if err := b.untilWritten(cache); err != nil {
				return err
			}
		}
	}
	b.add("burst of 1,000 unknown narinfos, through the cache and from its upstream at 50 ms", "ms ", unknown, direct, 1.5, true)
	b.add("the same with connecting to the server, which takes a round trip", "ms ", connected, connectedDirect, 1.5, true)
	b.add("the same again, and from a server with the items imported", "ms ", known, stored, 1.2, true)
	return nil
}

// burstAt requests narinfos like the client of Guix, and returns the time until it is connected,
// and from then on until the last answer.
func (b *bench) burstAt(address string, hashes []string) (connecting, took time.Duration, err error) {
	begun := time.Now()
	conn, err := net.Dial("tcp", address)
	if err != nil {
		return 0, 0, err
	}
	connecting = time.Since(begun)
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(burstWait)); err != nil {
		return 0, 0, err
	}
	var requests []byte
	for _, hash := range hashes {
		requests = fmt.Appendf(requests, "GET /%s.narinfo HTTP/1.1\r\nHost: %s\r\nUser-Agent: GNU Guile\r\nAccept: application/x-nix-narinfo,*/*\r\nConnection: keep-alive\r\n\r\n", hash, address)
	}
	begun = time.Now()
	if _, err := conn.Write(requests); err != nil {
		return 0, 0, err
	}
	answers := bufio.NewReaderSize(conn, 64<<10)
	for _, hash := range hashes {
		if err := skipAnswer(answers); err != nil {
			return 0, 0, fmt.Errorf("%s.narinfo from %s: %w", hash, address, err)
		}
	}
	return connecting, time.Since(begun), nil
}

// skipAnswer reads an answer with a body. It parses just enough of HTTP, so that the client
// leaves the processors to the servers.
func skipAnswer(answers *bufio.Reader) error {
	length := 0
	for n := 0; ; n++ {
		line, err := answers.ReadSlice('\n')
		if err != nil {
			return err
		}
		value, isLength := bytes.CutPrefix(line, []byte("Content-Length: "))
		switch {
		case n == 0 && !bytes.HasPrefix(line, []byte("HTTP/1.1 200 ")):
			return fmt.Errorf("%q", line)
		case isLength:
			if length, err = strconv.Atoi(string(bytes.TrimSpace(value))); err != nil {
				return err
			}
		case len(line) == 2 && length > 0:
			_, err := answers.Discard(length)
			return err
		case len(line) == 2:
			return errors.New("no body")
		}
	}
}

// untilWritten waits until the cache has written what its upstream sent.
func (b *bench) untilWritten(cache *server) error {
	ctx, cancel := context.WithTimeout(b.ctx, burstWait)
	defer cancel()
	for {
		unwritten, err := cache.metric("narherder_lookups_unwritten")
		if err == nil && unwritten == 0 {
			time.Sleep(200 * time.Millisecond) // until it is quiet
			return nil
		}
		if err == nil {
			err = errors.New("items are still unwritten")
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for the cache: %w", err)
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// delay listens for connections to the address, and delays each direction.
func delay(ctx context.Context, address string, by time.Duration) (net.Listener, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	go func() {
		for {
			near, err := listener.Accept()
			if err != nil {
				return
			}
			far, err := new(net.Dialer).DialContext(ctx, "tcp", address)
			if err != nil {
				near.Close()
				continue
			}
			go forward(far, near, by)
			go forward(near, far, by)
		}
	}()
	return listener, nil
}

// forward copies bytes with a delay. The sender is never slowed down.
func forward(to, from net.Conn, by time.Duration) {
	type piece struct {
		bytes []byte
		due   time.Time
	}
	pieces := make(chan piece, 1<<16)
	go func() {
		defer close(pieces)
		buffer := make([]byte, 64<<10)
		for {
			n, err := from.Read(buffer)
			if n > 0 {
				pieces <- piece{append([]byte(nil), buffer[:n]...), time.Now().Add(by)}
			}
			if err != nil {
				return
			}
		}
	}()
	defer to.Close()
	defer from.Close()
	next, ok := <-pieces
	for ok {
		p := next
		time.Sleep(time.Until(p.due))
		for next.bytes, ok = nil, true; ok && next.bytes == nil; {
			select {
			case next, ok = <-pieces:
				if ok && time.Until(next.due) <= 0 { // one write takes less of the processors
					p.bytes, next.bytes = append(p.bytes, next.bytes...), nil
				}
				continue
			default:
			}
			break
		}
		if _, err := to.Write(p.bytes); err != nil {
			return
		}
		if ok && next.bytes == nil {
			next, ok = <-pieces
		}
	}
}
