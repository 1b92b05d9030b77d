//go:build race

package dependence

func init() { modelRuns = 0 }
