package page

import (
	"bytes"
	"strconv"
)

// WantsHTML reports whether the values of a request's Accept fields name text/html, as those
// of browsers do. Ranges such as */* don't count: other clients send these.
func WantsHTML(accept ...[]byte) bool {
	for _, value := range accept {
		for element := range bytes.SplitSeq(value, []byte(",")) {
			kind, parameters, _ := bytes.Cut(element, []byte(";"))
			if bytes.EqualFold(bytes.TrimSpace(kind), []byte("text/html")) && !isRefused(parameters) {
				return true
			}
		}
	}
	return false
}

// isRefused reports whether the parameters of a media range have the weight 0.
func isRefused(parameters []byte) bool {
	for parameter := range bytes.SplitSeq(parameters, []byte(";")) {
		name, value, _ := bytes.Cut(parameter, []byte("="))
		if bytes.EqualFold(bytes.TrimSpace(name), []byte("q")) {
			weight, err := strconv.ParseFloat(string(bytes.TrimSpace(value)), 64)
			return err == nil && weight == 0
		}
	}
	return false
}
