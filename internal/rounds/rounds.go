// Package rounds scales how often tests with random events, such as kills, are repeated.
package rounds

import (
	"fmt"
	"os"
	"strconv"
)

// Variable is the environment variable with a factor, such as 10 before a release.
const Variable = "NAR_HERDER_ROUNDS"

// Of returns the number of rounds of a test with n rounds by default.
func Of(n int) int {
	text := os.Getenv(Variable)
	if text == "" {
		return n
	}
	factor, err := strconv.Atoi(text)
	if err != nil || factor < 1 {
		panic(fmt.Sprintf("%s=%s: want a number from 1", Variable, text))
	}
	return n * factor
}
