//go:build race

package dependence

func init() { modelRuns = 200 } // the model is one goroutine; scripts/test runs it again without the race detector
