package main

import (
	"math"
	"runtime/debug"
	"sync"

	"github.com/KimMachineGun/automemlimit/memlimit"

	"nar-herder/compression"
)

const (
	// decoderShare is the part of the memory that all decoders together may take.
	// Garbage may be as much again before it is collected.
	decoderShare = 8
	// passingShare is how much less than decoderBudget the decoders have, in addition, that
	// compare nars which pass through: half. See [passing.New].
	passingShare = 2
	// unknownMemory is the budget where the memory is not known.
	unknownMemory = 512 << 20
)

// decoderBudget is the memory of all decoders of this process, but for those that compare
// nars that pass through, and those of copy.
var decoderBudget = sync.OnceValue(func() *compression.Budget {
	return compression.NewBudget(decoderMemory(debug.SetMemoryLimit(-1), memlimit.FromCgroup, memlimit.FromSystem))
})

// decoderMemory is the share of the least of GOMEMLIMIT, the limit of the control group
// and the memory of the machine, in bytes. A control group may allow more than there is.
func decoderMemory(goLimit int64, providers ...memlimit.Provider) int64 {
	memory := uint64(goLimit)
	for _, provider := range providers {
		if limit, err := provider(); err == nil && limit > 0 {
			memory = min(memory, limit)
		}
	}
	if memory >= math.MaxInt64 {
		return unknownMemory
	}
	return int64(memory / decoderShare)
}
