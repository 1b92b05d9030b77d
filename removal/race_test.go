//go:build race

package removal

func init() { modelRuns = 4000 } // each takes thirty times as long
