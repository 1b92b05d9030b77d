package main

import (
	"encoding/json"
	"io"

	"nar-herder/internal/redact"
)

// print prints a result.
func (v *verifying) print(out io.Writer, line *verifiedLine) {
	if v.JSON {
		_ = json.NewEncoder(redact.JSON{W: out}).Encode(line) // fails when the pipe is closed
		return
	}
	printf(out, "%s: %s", line.Name, line.Verdict)
	if line.Withdrawn {
		printf(out, ", withdrawn")
	}
	if line.Key != "" {
		printf(out, ", signed by %s with the key %s", line.Signer, shortKey(line.Key))
	}
	switch {
	case line.Authorized == nil:
	case *line.Authorized:
		printf(out, ", authorized")
	default:
		printf(out, ", NOT AUTHORIZED")
	}
	if line.Reason != "" {
		printf(out, ": %s", line.Reason)
	}
	printf(out, "\n")
	for _, nar := range line.Nars {
		printf(out, "  %s: %s", nar.URL, nar.Verdict)
		if nar.NarHash != "" {
			printf(out, ", %s, %s", byteCount(nar.Bytes), nar.NarHash)
		}
		if nar.Reason != "" {
			printf(out, ": %s", nar.Reason)
		}
		printf(out, "\n")
	}
}
