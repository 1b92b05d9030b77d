//go:build race

package main

func init() {
	hasRaceDetector = true
	// A program with the detector sleeps for a second before it exits, so that a
	// race has time to show. Thousands of runs would do so.
	raceEnvironment = append(raceEnvironment, "GORACE=atexit_sleep_ms=10")
}
