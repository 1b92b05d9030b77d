package metrics

import (
	"testing"
	"time"

	"nar-herder/httpapi/measured"
)

// BenchmarkAnswer measures what an answer costs, apart from reading the clock.
func BenchmarkAnswer(b *testing.B) {
	a := New([]string{"other", "/HASH.narinfo"}, 1)
	begun := time.Now()
	end := begun.Add(100 * time.Microsecond)
	for name, batch := range map[string]int{"one": 1, "pipelined": 40} {
		b.Run(name, func(b *testing.B) {
			b.RunParallel(func(pb *testing.PB) {
				var p measured.Pending
				kind := measured.Kind{Route: 1, Status: 200, Hit: true}
				for n := 0; pb.Next(); n++ {
					if !p.Combine(kind, 1000) {
						p.Add(a, kind, nil, begun, 1000, false)
					}
					if n%batch == 0 {
						p.Wrote()
						p.Tick(end)
						p.Settle()
					}
				}
			})
		})
	}
}
