//go:build race

package main

func init() {
	buildFlags = append(buildFlags, "-race")
	many = 4000 // each takes many times as long
}
