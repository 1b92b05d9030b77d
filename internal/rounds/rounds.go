// Package rounds scales how often tests repeat what is random: kills, damage.
package rounds

import (
	"fmt"
	"os"
	"strconv"
)

// Variable is the environment's name for a factor, such as 10 before a release.
const Variable = "NAR_HERDER_ROUNDS"

// Of returns how many rounds a test makes that makes n by default.
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
