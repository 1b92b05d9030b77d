package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"sync"
	"time"
)

// idle measures the cost of idle and slow connections for other clients.
func (b *bench) idle() error {
	const idle, slow = 2000, 50
	t, ours, theirs, err := b.narinfoServers(false)
	if err != nil {
		return err
	}
	defer ours.stop()
	defer theirs.stop()
	l, err := b.newLoad(t.shuffledPaths(b.seed), 1)
	if err != nil {
		return err
	}
	request := fmt.Sprintf("GET /%s.narinfo HTTP/1.1\r\nHost: localhost\r\n\r\n", t.hashes[0])
	var alone, beside, answered []float64
	for round := range b.rounds + 1 {
		m, err := l.run(b, ours, b.duration)
		if err != nil {
			return err
		}
		m2, served, err := b.besideIdle(l, ours, request, idle, slow)
		if err != nil {
			return err
		}
		if round > 0 { // the first one is a warm-up
			alone, beside, answered = append(alone, m.rate), append(beside, m2.rate), append(answered, float64(served))
		}
	}
	b.add("narinfos beside 2,000 idle and 50 slow connections (second figure: without them)", "requests/s ", beside, alone, 0.9, false)
	b.addFigure("idle connections that are answered afterwards, at least", "", slices.Min(answered), idle, false)
	return nil
}

// besideIdle runs the load beside idle and slow connections, and returns how many of the idle
// ones are still served afterwards.
func (b *bench) besideIdle(l *load, s *server, request string, idle, slow int) (m measurement, served int, err error) {
	var kept []keptConnection
	defer func() {
		for _, c := range kept {
			c.Close()
		}
	}()
	for i := range idle + slow {
		conn, err := net.DialTimeout("tcp", s.address, 10*time.Second)
		if err != nil {
			return m, 0, err
		}
		kept = append(kept, keptConnection{conn, bufio.NewReaderSize(conn, 512)})
		if i < idle { // idle after a first answer, like those of clients
			if err := kept[i].ask(request); err != nil {
				return m, 0, fmt.Errorf("connection %d: %w", i, err)
			}
		}
	}
	ctx, cancel := context.WithCancel(b.ctx)
	defer cancel()
	var clients sync.WaitGroup
	for _, c := range kept[idle:] {
		clients.Go(func() {
			for k := 0; ; k++ {
				if _, err := c.Write([]byte{request[k%len(request)]}); err != nil {
					return // the server closes slow connections
				}
				select {
				case <-time.After(time.Second):
				case <-ctx.Done():
					return
				}
			}
		})
	}
	m, err = l.run(b, s, b.duration)
	cancel()
	clients.Wait()
	for _, c := range kept[:idle] {
		if c.ask(request) == nil {
			served++
		}
	}
	return m, served, err
}

// keptConnection is a keep-alive connection.
type keptConnection struct {
	net.Conn
	answers *bufio.Reader
}

// ask sends the request and reads the answer.
func (c keptConnection) ask(request string) error {
	if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return err
	}
	if _, err := io.WriteString(c, request); err != nil {
		return err
	}
	response, err := http.ReadResponse(c.answers, nil)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if _, err := io.Copy(io.Discard, response.Body); err != nil {
		return err
	}
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("the answer is %s", response.Status)
	}
	return nil
}
