package admission

import "testing"

func TestLimits(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		given       Limits
		descriptors int
		want        Limits
	}{
		{Limits{}, 60, Limits{20, 5, defaultUnread}},
		{Limits{}, 1024, Limits{341, 85, defaultUnread}},
		{Limits{}, 524288, Limits{16384, 4096, defaultUnread}},
		{Limits{}, 2, Limits{1, 1, defaultUnread}},
		{Limits{Connections: 20000}, 524288, Limits{20000, 5000, defaultUnread}},
		{Limits{Connections: 20000, PerAddress: 20000, Unread: 1}, 1024, Limits{512, 512, 1}},
	} {
		if got := test.given.within(test.descriptors); got != test.want {
			t.Errorf("%+v with %d descriptors: %+v, want %+v", test.given, test.descriptors, got, test.want)
		}
	}
}
