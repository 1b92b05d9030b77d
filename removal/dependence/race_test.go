//go:build race

package dependence

func init() { modelRuns = 600 } // each takes many times as long
