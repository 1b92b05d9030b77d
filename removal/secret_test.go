package removal

import (
	"strings"
	"testing"

	"nar-herder/peer"
)

// TestReasonWithoutPassword: /health shows why nothing is removed, but not the password of the
// instance that stored-on names.
func TestReasonWithoutPassword(t *testing.T) {
	t.Parallel()
	i := newInstance(t, newClock())
	r := i.remover(0, nil, "stored-on=http://user:s3cret@127.0.0.1:1")
	r.dependence.AssumeSettled("0") // an id that is less than any other
	for _, statement := range []peer.Statement{nil, {i.Instance(): 1}} {
		for url := range r.peers {
			r.dependence.Hear(url, i.clock.now(), peer.Introduction{Instance: "0", ReliesOn: statement})
		}
		_, why := r.usable()
		if !strings.Contains(why, "depends on this instance") || !strings.Contains(why, "127.0.0.1:1") || strings.Contains(why, "s3cret") {
			t.Errorf("%v: %q", statement, why)
		}
	}
}
