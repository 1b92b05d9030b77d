package narinfo

import "time"

// UnadvertisedTTL is how long clients keep a narinfo that came without a time to
// live: Guix's %narinfo-ttl.
const UnadvertisedTTL = 36 * time.Hour

// LongestTTL is how long a client may hold a narinfo. While newTTL is given, it
// is what narinfos advertise, and ttl is what they did before: the longer of the
// two counts. otherwise is what they do, or did, without; nil advertises nothing.
func LongestTTL(ttl, newTTL *time.Duration, otherwise time.Duration) time.Duration {
	if ttl == nil && newTTL == nil {
		return otherwise
	}
	if ttl == nil {
		ttl = &otherwise
	}
	if newTTL == nil {
		newTTL = ttl
	}
	return max(*ttl, *newTTL)
}
