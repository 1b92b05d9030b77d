//go:build race

package main

func init() {
	hasRaceDetector = true
	// A program with the detector sleeps for a second before it exits, to find more
	// races. That is too long for thousands of runs.
	raceEnvironment = append(raceEnvironment, "GORACE=atexit_sleep_ms=10")
}
