//go:build !race

package storage_test

// stride is the number of steps from one crash to the next.
const stride = 1
