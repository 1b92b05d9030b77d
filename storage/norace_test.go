//go:build !race

package storage_test

// stride is how many steps there are from one crash to the next.
const stride = 1
