package headers

import (
	"strings"
)

// PrefersEncoded says whether a client that sent these headers Accept-Encoding
// wants the coding rather than plain bytes. A client has to name it: "*" says
// nothing of what it can read. Where it likes both as much, it gets the coding.
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

// lesser is the weight of a coding that is named once more.
func lesser(before, weight int) int {
	if before < 0 {
		return weight
	}
	return min(before, weight)
}

// parseCoding reads an element of Accept-Encoding, by RFC 9110, section 12.5.3:
// a name, and perhaps a weight in thousandths. One that is not well-formed is not
// ok, and counts as not there.
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

// parseWeight reads a number from 0 to 1 with three decimals at most, in
// thousandths.
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
