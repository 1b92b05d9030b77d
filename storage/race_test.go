//go:build race

package storage_test

// stride is how many steps there are from one crash to the next. With the race
// detector SQLite is twenty times as slow, and it is not for races that a
// program is ended at each step in turn.
const stride = 23 // scripts/test names the tests that have it
