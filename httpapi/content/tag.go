package content

import (
	"strconv"
	"strings"
	"time"

	"nar-herder/peer"
	"nar-herder/storage/bytestore"
)

// Tagger makes the entity tag of length bytes of the file that the info describes. former
// is a previous tag of the same bytes; nil for none.
type Tagger func(length int64, info bytestore.Info) (etag, former []byte)

// ByTime makes entity tags of the checksum in the info, or else of the time, as [TimeTag]
// does; the latter differ between instances.
func ByTime(name string) Tagger {
	return func(length int64, info bytestore.Info) (etag, former []byte) {
		byTime := TimeTag(name, length, info.ModTime)
		if info.Sum != [16]byte{} {
			return peer.SumTag(info.Sum), byTime
		}
		return byTime, nil
	}
}

// TimeTag makes the entity tag of a file without a known checksum. The time distinguishes files
// with the same nar and length, such as one that was compressed again.
func TimeTag(name string, length int64, modified time.Time) []byte {
	etag := append(append(make([]byte, 0, 96), '"'), name...)
	etag = strconv.AppendInt(append(etag, '-'), length, 16)
	etag = strconv.AppendInt(append(etag, '-'), modified.UnixNano(), 16)
	return append(etag, '"')
}

// Version returns the bucket's tag of an object, if an entity tag can contain it. It
// distinguishes contents with the same time, which has a resolution of one second there.
func Version(info bytestore.Info) string {
	if info.Tag == "" || strings.ContainsFunc(info.Tag, func(r rune) bool { return r <= ' ' || r > '~' || r == '"' || r == ',' }) {
		return ""
	}
	return "-" + info.Tag
}

// ByContent makes the entity tag of bytes that the name identifies on all instances.
func ByContent(name string) Tagger {
	return func(int64, bytestore.Info) (etag, _ []byte) { return []byte(`"` + name + `"`), nil }
}
