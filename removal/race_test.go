//go:build race

package removal

func init() { modelRuns = 600 } // each takes many times as long
