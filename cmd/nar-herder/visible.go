package main

import (
	"fmt"
	"io"

	"nar-herder/internal/redact"
)

// printf is [fmt.Fprintf] for what people read. Strings and errors among the arguments
// may come from outside, such as names of files: nothing in them reaches the terminal
// but what shows as itself.
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
