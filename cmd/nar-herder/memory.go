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
	// unreadShare is the part that requests may take that clients send before they read
	// the answers to others.
	unreadShare = 32
	// unknownMemory is taken for the memory where that is not known.
	unknownMemory = 4 << 30
)

// decoderBudget is the memory of all decoders of this process, but for those that compare
// nars that pass through, and those of copy-storage.
var decoderBudget = sync.OnceValue(func() *compression.Budget {
	return compression.NewBudget(ownMemory() / decoderShare)
})

func ownMemory() int64 {
	return memory(debug.SetMemoryLimit(-1), memlimit.FromCgroup, memlimit.FromSystem)
}

// memory is the least of GOMEMLIMIT, the limit of the control group
// and the memory of the machine, in bytes. A control group may allow more than there is.
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
