package main

import "github.com/KimMachineGun/automemlimit/memlimit"

// decoderShare is the part of the memory that nars may take which are decompressed for
// clients. Garbage may be as much again before it is collected.
const decoderShare = 8

// decoderMemory is how much that is here, in bytes: of the memory of the control group,
// or of the machine. 0, which stands for a default, is for an unknown one.
func decoderMemory() int64 {
	memory, err := memlimit.ApplyFallback(memlimit.FromCgroup, memlimit.FromSystem)()
	if err != nil {
		return 0
	}
	// A control group may allow more than there is.
	if system, err := memlimit.FromSystem(); err == nil {
		memory = min(memory, system)
	}
	return int64(memory / decoderShare)
}
