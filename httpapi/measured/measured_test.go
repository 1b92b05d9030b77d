package measured

import (
	"slices"
	"testing"
	"time"
)

// sink keeps the answers.
type sink struct{ got []Answer }

func (s *sink) Finished(answers []Answer) { s.got = append(s.got, slices.Clone(answers)...) }

var start = time.Unix(1000, 0)

func at(ms int) time.Time { return start.Add(time.Duration(ms) * time.Millisecond) }

// expect compares the finished answers: route, count, bytes, first byte and duration in
// milliseconds, and whether they were cut.
func (s *sink) expect(t *testing.T, want ...[6]int) {
	t.Helper()
	var got [][6]int
	for _, a := range s.got {
		cut := 0
		if a.Cut {
			cut = 1
		}
		got = append(got, [6]int{int(a.Route), a.Count, int(a.Sent), int(a.FirstByte.Milliseconds()), int(a.Duration.Milliseconds()), cut})
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestOneAnswer(t *testing.T) {
	var p Pending
	s := new(sink)
	p.Add(s, Kind{Route: 1}, nil, at(0), 100, false)
	if p.Wrote() {
		t.Error("asks for the time of a short answer")
	}
	p.Tick(at(3))
	s.expect(t) // more of it may be in the buffer
	p.Settle()
	s.expect(t, [6]int{1, 1, 100, 3, 3, 0})
	p.Close(at(9))
	if len(s.got) != 1 {
		t.Error("finished twice")
	}
}

func TestLongAnswerIsWrittenInTwo(t *testing.T) {
	var p Pending
	s := new(sink)
	p.Add(s, Kind{Route: 1}, nil, at(0), 50_000, false)
	p.Wrote()
	p.Tick(at(2))
	p.Wrote()
	p.Tick(at(5))
	p.Settle()
	s.expect(t, [6]int{1, 1, 50_000, 2, 5, 0})
}

func TestPipelinedAnswersAreCombined(t *testing.T) {
	var p Pending
	s := new(sink)
	p.Add(s, Kind{Route: 1}, nil, at(0), 100, false)
	for range 9 {
		if !p.Combine(Kind{Route: 1}, 100) {
			t.Fatal("not combined")
		}
	}
	if p.Combine(Kind{Route: 2}, 100) || p.Combine(Kind{Route: 1, Status: 404}, 100) || p.Combine(Kind{Route: 1, Hit: true}, 100) {
		t.Fatal("combined with another kind")
	}
	p.Add(s, Kind{Route: 2}, nil, at(0), 0, false)
	p.Add(s, Kind{Route: 1}, nil, at(0), 10, false)
	for range 9 {
		p.Combine(Kind{Route: 1}, 10)
	}
	p.Wrote() // the last one may be half in the buffer
	p.Tick(at(1))
	s.expect(t, [6]int{1, 10, 1000, 1, 1, 0}, [6]int{2, 1, 0, 1, 1, 0}, [6]int{1, 9, 90, 1, 1, 0})
	s.got = nil
	p.Add(s, Kind{Route: 1}, nil, at(1), 10, false)
	p.Wrote()
	p.Tick(at(2))
	p.Settle()
	s.expect(t, [6]int{1, 1, 10, 1, 2, 0}, [6]int{1, 1, 10, 1, 1, 0})
}

func TestLoggedRequestsAreNotCombined(t *testing.T) {
	var p Pending
	s := new(sink)
	for range 3 {
		if p.Combine(Kind{}, 100) {
			t.Fatal("combined")
		}
		p.Add(s, Kind{}, new(Request), at(0), 100, false)
	}
	p.Wrote()
	p.Tick(at(1))
	p.Settle()
	s.expect(t, [6]int{0, 1, 100, 1, 1, 0}, [6]int{0, 1, 100, 1, 1, 0}, [6]int{0, 1, 100, 1, 1, 0})
}

func TestStreamThatBypassesTheBuffer(t *testing.T) {
	for _, sent := range []int64{1000, 400} {
		var p Pending
		s := new(sink)
		p.Add(s, Kind{Route: 1}, nil, at(0), 10, false)
		p.Add(s, Kind{Route: 2}, nil, at(1), 0, true)
		if !p.Wrote() { // the head
			t.Fatal("doesn't ask for the time of the first byte")
		}
		p.Tick(at(3))
		p.Ended(at(20), sent, sent == 1000)
		cut := 0
		if sent < 1000 {
			cut = 1
		}
		s.expect(t, [6]int{1, 1, 10, 3, 3, 0}, [6]int{2, 1, int(sent), 2, 19, cut})
	}
}

func TestStreamThroughTheBuffer(t *testing.T) {
	var p Pending
	s := new(sink)
	p.Add(s, Kind{}, nil, at(0), 0, true)
	p.Copied(300, false)
	if !p.Wrote() {
		t.Fatal("doesn't ask for the time of the first byte")
	}
	p.Tick(at(1))
	p.Copied(200, true)
	p.Wrote()
	p.Tick(at(7))
	p.Settle()
	s.expect(t, [6]int{0, 1, 500, 1, 7, 0})
}

func TestStreamIsCut(t *testing.T) {
	var p Pending
	s := new(sink)
	p.Add(s, Kind{}, nil, at(0), 0, true)
	p.Copied(300, false)
	p.Wrote()
	p.Tick(at(1))
	p.Copied(300, false)
	p.Failed(0)
	p.Close(at(8))
	s.expect(t, [6]int{0, 1, 600, 1, 8, 1})
}

func TestFailedWriteOfPipelinedAnswers(t *testing.T) {
	var p Pending
	s := new(sink)
	for route := range uint16(3) {
		p.Add(s, Kind{Route: route}, nil, at(0), 100, false)
	}
	p.Failed(150)
	p.Close(at(4))
	s.expect(t, [6]int{0, 1, 100, 4, 4, 1}, [6]int{1, 1, 50, 4, 4, 1}, [6]int{2, 1, 0, 4, 4, 1})
}

func TestAnswerThatIsNeverWritten(t *testing.T) {
	var p Pending
	s := new(sink)
	p.Add(s, Kind{}, nil, at(0), 100, false)
	p.Close(at(4))
	s.expect(t, [6]int{0, 1, 0, 4, 4, 1})
}

func TestLastAnswerOfAConnection(t *testing.T) {
	var p Pending
	s := new(sink)
	p.Add(s, Kind{}, nil, at(0), 100, false)
	p.Wrote()
	p.Close(at(4))
	s.expect(t, [6]int{0, 1, 100, 4, 4, 0})
}

func TestAllocations(t *testing.T) {
	var p Pending
	s := nothing{}
	if n := testing.AllocsPerRun(100, func() {
		for i := range 40 {
			if kind := (Kind{Status: 200 + uint16(i/20)}); !p.Combine(kind, 100) {
				p.Add(s, kind, nil, at(0), 100, false)
			}
		}
		p.Wrote()
		p.Tick(at(1))
		p.Settle()
	}); n > 1 { // for more than two kinds
		t.Errorf("%v allocations for pipelined answers", n)
	}
	if n := testing.AllocsPerRun(100, func() {
		p.Add(s, Kind{}, nil, at(0), 100, false)
		p.Wrote()
		p.Tick(at(1))
		p.Settle()
	}); n != 0 {
		t.Errorf("%v allocations for an answer", n)
	}
}

type nothing struct{}

func (nothing) Finished([]Answer) {}
