package main

import (
	"math"
	"runtime/debug"
	"sync"

	"github.com/KimMachineGun/automemlimit/memlimit"

	"nar-herder/compression"
)

const (
	// decoderShare is the divisor for the memory of all decoders together. Uncollected
	// garbage may double that.
	decoderShare = 8
	// passingShare is the divisor, of decoderBudget, for the additional memory of the
	// decoders that verify streamed nars. See [passing.New].
	passingShare = 2
	// unreadShare is the divisor for the memory of pipelined requests.
	unreadShare = 32
	// unknownMemory is assumed if the size of the memory is unknown.
	unknownMemory = 4 << 30
)

// decoderBudget is the memory of all decoders of this process, except those that verify
// streamed nars and those of copy-storage.
var decoderBudget = sync.OnceValue(func() *compression.Budget {
	return compression.NewBudget(ownMemory() / decoderShare)
})

func ownMemory() int64 {
	return memory(debug.SetMemoryLimit(-1), memlimit.FromCgroup, memlimit.FromSystem)
}

// memory returns the least of GOMEMLIMIT, the limit of the control group and the memory of
// the machine, in bytes. A control group may allow more memory than the machine has.
func memory(goLimit int64, providers ...memlimit.Provider) int64 {
	least := uint64(goLimit)
	for _, provider := range providers {
		if limit, err := provider(); err == nil && limit > 0 {
			least = min(least, limit)
		}
	}
	if least >= math.MaxInt64 {
		return unknownMemory
	}
	return int64(least)
}
