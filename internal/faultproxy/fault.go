package faultproxy

import (
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
)

// Kind is a kind of fault.
type Kind int

const (
	// None passes the answer unchanged.
	None Kind = iota
	// CutHead closes the connection without an answer, and without asking the target.
	CutHead
	// CutBody closes the connection in the middle of the body.
	CutBody
	// StallHead sends nothing until [Proxy.Release], then all.
	StallHead
	// StallBody stops in the middle of the body until [Proxy.Release], then continues.
	StallBody
	// Status answers with Fault.Status instead of the target.
	Status
	// ShortLength ends the body early, with a Content-Length that matches.
	ShortLength
	// ShortChunked ends the body early, in chunks, with a clean end.
	ShortChunked
	// FlipBit changes one bit of the body.
	FlipBit
	// HTML answers 200 with an HTML page instead of the target, as a captive portal does.
	HTML
	// Stale repeats an earlier answer to the same request.
	Stale

	kinds
)

var kindNames = [kinds]string{"none", "cut head", "cut body", "stall head", "stall body", "status", "short length", "short chunked", "flip bit", "html", "stale"}

func (k Kind) String() string { return kindNames[k] }

// All is all kinds except None, StallHead and StallBody.
var All = []Kind{CutHead, CutBody, Status, ShortLength, ShortChunked, FlipBit, HTML, Stale}

// Fault is the fault of one answer. The zero Fault is none.
type Fault struct {
	Kind Kind
	// Status is the status code for [Status]; 0 is 503.
	Status int
	// At is the position in the body as a fraction of its length, 0 ≤ At < 1. For [Stale],
	// it selects the answer: 0 is the oldest one remembered.
	At float64
	// After is the position in a body of unknown length, such as a stream, in bytes.
	After int64
	// Bit is the flipped bit of the byte, from 0 to 7.
	Bit int
}

// Random picks random faults of the kinds for a share of the requests. The same seed picks the
// same faults for the same sequence of requests.
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

// Script picks the faults in order, and then none.
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

// Below uses pick for paths with the prefix, and no faults for others.
func Below(prefix string, pick func(*http.Request) Fault) func(*http.Request) Fault {
	return func(r *http.Request) Fault {
		if !strings.HasPrefix(r.URL.Path, prefix) {
			return Fault{}
		}
		return pick(r)
	}
}
