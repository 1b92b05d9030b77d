package headers

import (
	"strings"
)

// PrefersEncoded reports whether a client with these Accept-Encoding headers prefers the
// coding to plain bytes, or accepts both equally. It must name the coding: "*" doesn't count.
func PrefersEncoded(headers [][]byte, coding string) bool {
	encoded, plain := -1, -1 // thousandths; -1 when not named
	for _, header := range headers {
		for element := range strings.SplitSeq(string(header), ",") {
			name, weight, ok := parseCoding(element)
			if !ok {
				continue
			}
			switch {
			case strings.EqualFold(name, coding):
				encoded = lesser(encoded, weight)
			case strings.EqualFold(name, "identity"):
				plain = lesser(plain, weight)
			}
		}
	}
	return encoded > 0 && encoded >= plain
}

// lesser returns the weight of a coding that is named again.
func lesser(before, weight int) int {
	if before < 0 {
		return weight
	}
	return min(before, weight)
}

// parseCoding parses an element of Accept-Encoding (RFC 9110, section 12.5.3) and returns the
// name and the weight in thousandths. ok is false for malformed elements, which are ignored.
func parseCoding(element string) (name string, weight int, ok bool) {
	const space = " \t"
	name, parameter, weighted := strings.Cut(element, ";")
	name = strings.Trim(name, space)
	if name == "" || strings.ContainsAny(name, space) {
		return "", 0, false
	}
	if !weighted {
		return name, 1000, true
	}
	parameter = strings.Trim(parameter, space)
	if len(parameter) < 2 || !strings.EqualFold(parameter[:2], "q=") {
		return "", 0, false
	}
	weight, ok = parseWeight(parameter[2:])
	return name, weight, ok
}

// parseWeight parses a number from 0 to 1 with at most three decimals, in thousandths.
func parseWeight(s string) (weight int, ok bool) {
	whole, decimals, _ := strings.Cut(s, ".")
	if whole != "0" && whole != "1" || len(decimals) > 3 || strings.Trim(decimals, "0123456789") != "" {
		return 0, false
	}
	weight = int(whole[0]-'0') * 1000
	for i, unit := 0, 100; i < len(decimals); i, unit = i+1, unit/10 {
		weight += int(decimals[i]-'0') * unit
	}
	return weight, weight <= 1000
}
