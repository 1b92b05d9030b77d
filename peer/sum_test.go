package peer

import "testing"

func TestSumTag(t *testing.T) {
	t.Parallel()
	sum := [16]byte{1, 2, 15: 0x80}
	good := string(SumTag(sum))
	if parseSumTag(good) != sum {
		t.Errorf("%s is the tag of %x", good, parseSumTag(good))
	}
	for _, bad := range []string{"", `"`, `""`, "W/" + good, good[1:], good[:len(good)-1], good + good, `"1c50dgwsc79s2zh3-gzip-77"`, `"` + good + `"`, `"sha256-x"`} {
		if sum := parseSumTag(bad); sum != [16]byte{} {
			t.Errorf("%s is the tag of %x", bad, sum)
		}
	}
}
