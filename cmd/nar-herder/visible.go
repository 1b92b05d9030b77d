package main

import (
	"fmt"
	"io"

	"nar-herder/internal/redact"
)

// printf is [fmt.Fprintf] for people. It escapes control characters in strings and errors among
// the arguments, since these may come from outside, such as file names.
func printf(w io.Writer, format string, args ...any) (int, error) {
	for i, arg := range args {
		switch arg := arg.(type) {
		case string:
			args[i] = redact.Visible(arg)
		case error:
			args[i] = oneLine(arg)
		}
	}
	return fmt.Fprintf(w, format, args...)
}
