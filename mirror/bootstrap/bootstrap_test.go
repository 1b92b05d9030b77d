package bootstrap

import "testing"

func TestSlowLine(t *testing.T) {
	t.Parallel()
	const mega = 1 << 20
	for _, test := range []struct {
		rate       float64
		left, dump int64
		slow       bool
	}{
		{100 * mega, 1400 * mega, 700 * mega, false},
		{mega / 10, 1400 * mega, 700 * mega, true},
		{mega / 10, 1400 * mega, -1, false},        // unknown size
		{mega / 10, 100 * mega, 700 * mega, false}, // nearly complete
		{mega / 10, 600 * mega, 700 * mega, false},
	} {
		if got := isSlow(test.rate, test.left, test.dump); got != test.slow {
			t.Errorf("%+v: %v", test, got)
		}
	}
}
