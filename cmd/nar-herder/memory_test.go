package main

import (
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
