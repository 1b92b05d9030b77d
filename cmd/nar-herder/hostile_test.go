package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"nar-herder/compression"
	"nar-herder/compression/cached"
	"nar-herder/narinfo"
	"nar-herder/storage/narcheck"
)

// TestHostileNar decodes an xz file in all ways: for checks, mirroring, copies and removal;
// for a cached compression; and for a client. The file has two streams with correct
// checksums. The first ends with a number in an unusual encoding, and the second needs a
// dictionary of 4 GiB.
func TestHostileNar(t *testing.T) {
	file, err := os.ReadFile("testdata/hostile.xz")
	if err != nil {
		t.Fatal(err)
	}
	item := &narinfo.Narinfo{NarSize: 18, Files: []narinfo.File{{Compression: "xz"}}}
	for name, read := range map[string]func() error{
		"check": func() error { return narcheck.Check(t.Context(), item, 0, bytes.NewReader(file), decodeNar) },
		"cached": func() error {
			out, err := os.Create(filepath.Join(t.TempDir(), "out"))
			if err != nil {
				return err
			}
			defer out.Close()
			return cached.Transcode(context.WithoutCancel(t.Context()), item, bytes.NewReader(file), "xz", compression.Spec{Name: "zstd", Level: 1}, out, out, decoderBudget())
		},
		"client": func() error {
			z, err := compression.NewReaderWithin("xz", bytes.NewReader(file), compression.Memory("xz", file[:compression.HeadBytes], 18))
			if err != nil {
				return err
			}
			defer z.Close()
			_, err = io.Copy(io.Discard, z)
			return err
		},
	} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		err := read()
		runtime.ReadMemStats(&after)
		if err == nil {
			t.Errorf("%s: want an error", name)
		}
		if name == "check" && !errors.Is(err, narcheck.ErrWrongNar) {
			t.Errorf("%s: %v", name, err)
		}
		if took := after.TotalAlloc - before.TotalAlloc; took > 100<<20 {
			t.Errorf("%s: %d MiB were allocated", name, took>>20)
		}
	}
	if used := decoderBudget().Background(); used != 0 {
		t.Errorf("%d bytes are still counted as used", used)
	}
}
