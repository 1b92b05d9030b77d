package main

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"math"
	"testing"

	"github.com/KimMachineGun/automemlimit/memlimit"
)

// TestMemory: the least limit counts.
func TestMemory(t *testing.T) {
	unknown := func() (uint64, error) { return 0, memlimit.ErrNoLimit }
	for _, test := range []struct {
		goLimit       int64
		group, system memlimit.Provider
		want          int64
	}{
		{math.MaxInt64, unknown, memlimit.Limit(8 << 30), 8 << 30},
		{math.MaxInt64, memlimit.Limit(2 << 30), memlimit.Limit(8 << 30), 2 << 30},
		{math.MaxInt64, memlimit.Limit(16 << 30), memlimit.Limit(8 << 30), 8 << 30},
		{1 << 30, memlimit.Limit(2 << 30), memlimit.Limit(8 << 30), 1 << 30},
		{1 << 30, unknown, unknown, 1 << 30},
		{math.MaxInt64, unknown, unknown, unknownMemory},
	} {
		if got := memory(test.goLimit, test.group, test.system); got != test.want {
			t.Errorf("%d: %d, want %d", test.goLimit, got, test.want)
		}
	}
}

// TestCopyDoesNotWait: an upload that waits for decoder memory while it holds some for its
// parts could wait for ever.
func TestCopyDoesNotWait(t *testing.T) {
	var file bytes.Buffer
	w := gzip.NewWriter(&file)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	budget := decoderBudget()
	budget.Reserve(budget.Total(), true)
	defer budget.Release(budget.Total())
	other, err := decodeNar(t.Context(), "gzip", bytes.NewReader(file.Bytes()), 0)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := decodeNar(ctx, "gzip", bytes.NewReader(file.Bytes()), 0); !errors.Is(err, context.Canceled) {
		t.Errorf("the budget is not used: %v", err)
	}
	reader, err := decodeCopied(ctx, "gzip", bytes.NewReader(file.Bytes()), 0)
	if err != nil {
		t.Fatal(err)
	}
	reader.Close()
}
