package main

import (
	"bytes"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strconv"

	"github.com/valyala/fasthttp"
)

// The engines run as processes of this program with these variables set, so that their processor
// time can be measured.
const (
	engineVariable        = "NAR_HERDER_BENCH_ENGINE"
	engineAddressVariable = "NAR_HERDER_BENCH_ADDRESS"
	engineTreeVariable    = "NAR_HERDER_BENCH_TREE"
)

// serveEngine serves the narinfos of a directory from a map.
func serveEngine(engine string) {
	texts := make(map[string][]byte)
	names, err := filepath.Glob(filepath.Join(os.Getenv(engineTreeVariable), "*.narinfo"))
	for _, name := range names {
		if err == nil {
			texts["/"+filepath.Base(name)], err = os.ReadFile(name)
		}
	}
	address := os.Getenv(engineAddressVariable)
	switch {
	case err != nil:
	case engine == "fasthttp":
		err = fasthttp.ListenAndServe(address, func(ctx *fasthttp.RequestCtx) {
			text, ok := texts[string(ctx.RequestURI())]
			if !ok {
				ctx.SetStatusCode(fasthttp.StatusNotFound)
				return
			}
			ctx.SetContentType("application/x-nix-narinfo")
			ctx.Response.SetBodyRaw(text)
		})
	default:
		err = http.ListenAndServe(address, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			text, ok := texts[r.URL.Path]
			if !ok {
				http.NotFound(w, r)
				return
			}
			w.Header().Set("Content-Type", "application/x-nix-narinfo")
			w.Header().Set("Content-Length", strconv.Itoa(len(text)))
			_, _ = w.Write(text)
		}))
	}
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

// engines measures the HTTP engines alone, with narinfos.
func (b *bench) engines() error {
	t, err := b.writeTree(b.narinfos, false)
	if err != nil {
		return err
	}
	theirs, err := b.nginx(t.dir)
	if err != nil {
		return err
	}
	defer theirs.stop()
	self, err := os.Executable()
	if err != nil {
		return err
	}
	for _, engine := range []string{"net/http", "fasthttp"} {
		address, err := freeAddress()
		if err != nil {
			return err
		}
		ours, err := b.start(engine, address, []string{
			engineVariable + "=" + engine, engineAddressVariable + "=" + address, engineTreeVariable + "=" + t.dir}, self)
		if err != nil {
			return err
		}
		err = b.compareNarinfos(engine, t, ours, theirs, 0, 0, 0)
		ours.stop()
		if err != nil {
			return err
		}
	}
	return nil
}

// compareNarinfos measures a server of narinfos against nginx, with bars for the rate of single
// requests, their processor time, and the rate of pipelined ones.
func (b *bench) compareNarinfos(name string, t *tree, ours, theirs *server, rateBar, cpuBar, pipelinedBar float64) error {
	paths := t.shuffledPaths(b.seed)
	for _, path := range paths[:min(20, len(paths))] {
		a, err := ours.get(path)
		if err != nil {
			return err
		}
		z, err := theirs.get(path)
		if err != nil {
			return err
		}
		// Ours may list cached nars at the end.
		if !bytes.HasPrefix(a, z) {
			return fmt.Errorf("%s and %s answer differently to %s", ours.name, theirs.name, path)
		}
	}
	single, err := b.newLoad(paths, 1)
	if err != nil {
		return err
	}
	p, err := b.inTurn(single, ours, theirs)
	if err != nil {
		return err
	}
	b.add(name+", one at a time", "requests/s ", p.ourRate, p.theirRate, rateBar, false)
	b.add(name+", one at a time, processor time", "µs/request ", p.ourCPU, p.theirCPU, cpuBar, true)
	pipelined, err := b.newLoad(paths, pipelined)
	if err != nil {
		return err
	}
	if p, err = b.inTurn(pipelined, ours, theirs); err != nil {
		return err
	}
	b.add(name+", 64 pipelined", "requests/s ", p.ourRate, p.theirRate, pipelinedBar, false)
	return nil
}
