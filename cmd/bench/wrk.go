package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// load is a list of paths that wrk requests in order, repeatedly.
type load struct {
	script  string
	batches int
}

const (
	connections = 16 // of wrk
	pipelined   = 64 // requests in a batch
)

// newLoad writes the script for wrk. pipeline is the number of requests in a batch.
func (b *bench) newLoad(paths []string, pipeline int) (*load, error) {
	return b.newLoadFor("localhost", paths, pipeline)
}

// newLoadFor is newLoad with a Host header.
func (b *bench) newLoadFor(host string, paths []string, pipeline int) (*load, error) {
	list, err := os.CreateTemp(b.work, "paths-")
	if err != nil {
		return nil, err
	}
	_, err = list.WriteString(strings.Join(paths, "\n") + "\n")
	if err := errors.Join(err, list.Close()); err != nil {
		return nil, err
	}
	script := fmt.Sprintf(`
local batches, batch = {}, {}
for path in io.lines(%q) do
	batch[#batch+1] = "GET " .. path .. " HTTP/1.1\r\nHost: %s\r\n\r\n"
	if #batch == %d then
		batches[#batches+1] = table.concat(batch)
		batch = {}
	end
end
local i = 0
init = function(args)
	i = tonumber(args[1])
end
request = function()
	i = i %% #batches + 1
	return batches[i]
end
done = function(summary)
	io.write(string.format("result %%d %%d %%d %%d %%d %%d %%d\n", summary.requests, summary.duration, summary.errors.connect,
		summary.errors.read, summary.errors.write, summary.errors.status, summary.errors.timeout))
end
`, list.Name(), host, pipeline)
	name := filepath.Join(b.work, fmt.Sprintf("load-%d-%d.lua", pipeline, time.Now().UnixNano()))
	return &load{name, len(paths) / pipeline}, os.WriteFile(name, []byte(script), 0o644)
}

// measurement is the result of a load.
type measurement struct {
	rate float64       // requests per second
	cpu  time.Duration // of the server, per request
}

var resultLine = regexp.MustCompile(`(?m)^result (\d+) (\d+) (\d+) (\d+) (\d+) (\d+) (\d+)$`)

// parseWrk parses the line that the script prints.
func parseWrk(out []byte) (requests, microseconds, faults int64, err error) {
	fields := resultLine.FindSubmatch(out)
	if fields == nil {
		return 0, 0, 0, fmt.Errorf("wrk gave no result:\n%s", out)
	}
	numbers := make([]int64, len(fields)-1)
	for i, field := range fields[1:] {
		if numbers[i], err = strconv.ParseInt(string(field), 10, 64); err != nil {
			return 0, 0, 0, err
		}
	}
	for _, n := range numbers[2:] {
		faults += n
	}
	return numbers[0], numbers[1], faults, nil
}

// run puts the load on the server. It starts at a random position, so that measurements of a long
// list request different paths.
func (l *load) run(b *bench, s *server, duration time.Duration) (measurement, error) {
	before, err := s.cpu()
	if err != nil {
		return measurement{}, err
	}
	// wrk reads the list first.
	ctx, cancel := context.WithTimeout(b.ctx, duration+time.Minute)
	defer cancel()
	command := exec.CommandContext(ctx, "wrk", "-t1", "-c"+strconv.Itoa(connections),
		"-d"+strconv.Itoa(max(1, int(duration.Seconds())))+"s", "--timeout=10s", "-s", l.script, s.url("/"), strconv.Itoa(rand.IntN(l.batches)))
	var stderr bytes.Buffer
	command.Stderr = &stderr
	out, err := command.Output()
	if err != nil {
		return measurement{}, fmt.Errorf("wrk: %w\n%s", err, &stderr)
	}
	after, err := s.cpu()
	if err != nil {
		return measurement{}, err
	}
	requests, microseconds, faults, err := parseWrk(out)
	if err != nil {
		return measurement{}, err
	}
	if faults > 0 || requests == 0 {
		return measurement{}, fmt.Errorf("%s: %d of %d requests failed:\n%s", s.name, faults, requests, out)
	}
	return measurement{
		rate: float64(requests) / (float64(microseconds) / 1e6),
		cpu:  (after - before) / time.Duration(requests),
	}, nil
}

// pair holds the measurements of a row.
type pair struct{ ourRate, theirRate, ourCPU, theirCPU []float64 }

// inTurn puts the load on both servers in each round, and alternates which is first.
func (b *bench) inTurn(l *load, ours, theirs *server) (pair, error) {
	return b.inTurnOf(ours, l, theirs, l)
}

// inTurnOf is inTurn with a load for each server.
func (b *bench) inTurnOf(ours *server, ourLoad *load, theirs *server, theirLoad *load) (p pair, err error) {
	loads := map[*server]*load{ours: ourLoad, theirs: theirLoad}
	for _, s := range []*server{ours, theirs} { // to warm up
		if _, err := loads[s].run(b, s, time.Second); err != nil {
			return p, err
		}
	}
	for round := range b.rounds {
		order := []*server{ours, theirs}
		if round%2 == 1 {
			order = []*server{theirs, ours}
		}
		for _, s := range order {
			m, err := loads[s].run(b, s, b.duration)
			if err != nil {
				return p, err
			}
			cpu := float64(m.cpu.Nanoseconds()) / 1e3
			if s == ours {
				p.ourRate, p.ourCPU = append(p.ourRate, m.rate), append(p.ourCPU, cpu)
			} else {
				p.theirRate, p.theirCPU = append(p.theirRate, m.rate), append(p.theirCPU, cpu)
			}
		}
	}
	return p, nil
}
