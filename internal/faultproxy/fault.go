package faultproxy

import (
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
)

// Kind is what goes wrong with an answer.
type Kind int

const (
	// None lets the answer through as it is.
	None Kind = iota
	// CutHead closes the connection without a byte of an answer. The target is
	// not asked.
	CutHead
	// CutBody closes the connection in the middle of the body.
	CutBody
	// StallHead sends nothing until [Proxy.Release], then all.
	StallHead
	// StallBody stops in the middle of the body until [Proxy.Release], then goes
	// on.
	StallBody
	// Status answers with Fault.Status in the place of the target.
	Status
	// ShortLength ends the body early, and says that this is its length.
	ShortLength
	// ShortChunked ends the body early, in chunks, with a clean end.
	ShortChunked
	// FlipBit changes one bit of the body.
	FlipBit
	// HTML answers 200 with a page for people in the place of the target, as a
	// captive portal does.
	HTML
	// Stale repeats what the same request was answered before.
	Stale

	kinds
)

var kindNames = [kinds]string{"none", "cut head", "cut body", "stall head", "stall body", "status", "short length", "short chunked", "flip bit", "html", "stale"}

func (k Kind) String() string { return kindNames[k] }

// All are the kinds that end by themselves: all but None and those that stall.
var All = []Kind{CutHead, CutBody, Status, ShortLength, ShortChunked, FlipBit, HTML, Stale}

// Fault is what goes wrong with one answer. The zero Fault is none.
type Fault struct {
	Kind Kind
	// Status is the code that [Status] answers with; 0 is 503.
	Status int
	// At is where in the body it happens, as a part of its length, from 0 up to
	// but not including 1. Of [Stale], it is how far back: 0 is the oldest answer
	// that is remembered.
	At float64
	// After is where it happens in a body of a length that the target does not
	// tell, as a stream: so many bytes are let through before.
	After int64
	// Bit is which bit of the byte is flipped, from 0 to 7.
	Bit int
}

// Random picks faults of the kinds for a part of the requests, by a source of
// randomness that begins with the seed. Where requests come one after another,
// the same seed gives the same faults.
func Random(seed uint64, part float64, of ...Kind) func(*http.Request) Fault {
	var mu sync.Mutex
	random := rand.New(rand.NewPCG(seed, seed))
	statuses := []int{http.StatusInternalServerError, http.StatusBadGateway, http.StatusServiceUnavailable}
	return func(*http.Request) Fault {
		mu.Lock()
		defer mu.Unlock()
		if random.Float64() >= part {
			return Fault{}
		}
		return Fault{
			Kind: of[random.IntN(len(of))], Status: statuses[random.IntN(len(statuses))],
			At: random.Float64(), After: random.Int64N(4096), Bit: random.IntN(8),
		}
	}
}

// Script picks the faults one after another, and none when they are at their end.
func Script(faults ...Fault) func(*http.Request) Fault {
	var mu sync.Mutex
	return func(*http.Request) Fault {
		mu.Lock()
		defer mu.Unlock()
		if len(faults) == 0 {
			return Fault{}
		}
		next := faults[0]
		faults = faults[1:]
		return next
	}
}

// Below has pick asked for paths that begin with the prefix, and no fault for
// others.
func Below(prefix string, pick func(*http.Request) Fault) func(*http.Request) Fault {
	return func(r *http.Request) Fault {
		if !strings.HasPrefix(r.URL.Path, prefix) {
			return Fault{}
		}
		return pick(r)
	}
}
