package rowsum

import "testing"

func TestSum(t *testing.T) {
	t.Parallel()
	type row struct {
		a, b    int64
		content string
	}
	sum := func(rows ...row) string {
		var s Sum
		for _, r := range rows {
			s.Add(r.a, r.b, []byte(r.content))
		}
		return s.String()
	}
	want := sum(row{1, 2, "x"}, row{3, 4, "y"})
	if got := sum(row{3, 4, "y"}, row{1, 2, "x"}); got != want {
		t.Errorf("in another order: %s, want %s", got, want)
	}
	for _, other := range [][]row{{}, {{1, 2, "x"}}, {{1, 2, "x"}, {3, 4, "z"}}, {{1, 2, "x"}, {3, 5, "y"}}, {{2, 2, "x"}, {3, 4, "y"}}, {{1, 2, "x"}, {3, 4, "y"}, {0, 0, ""}}} {
		if got := sum(other...); got == want {
			t.Errorf("%v has the same sum", other)
		}
	}
}
