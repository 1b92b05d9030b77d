//go:build race

package removal

func init() { modelRuns = 200 } // all of it is one goroutine; scripts/test runs it again without the race detector
