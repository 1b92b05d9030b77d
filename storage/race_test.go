//go:build race

package storage_test

// stride is the number of steps from one crash to the next. With the race detector, SQLite
// is twenty times slower, and crashes at each step find no races.
const stride = 23 // scripts/test names the tests that use it
