//go:build race

package main

func init() {
	buildFlags = append(buildFlags, "-race")
	// A program with the detector sleeps for a second before it exits, so that a
	// race has time to show. Thousands of runs would do so.
	raceEnvironment = append(raceEnvironment, "GORACE=atexit_sleep_ms=10")
	many = 4000 // each takes many times as long
}
