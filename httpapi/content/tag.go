package content

import (
	"strconv"
	"time"

	"nar-herder/peer"
	"nar-herder/storage/bytestore"
)

// Tagger makes the entity tag of length bytes of the file that the info describes. former
// is a tag that they had before; nil for none.
type Tagger func(length int64, info bytestore.Info) (etag, former []byte)

// ByTime makes entity tags that differ between instances, see [TimeTag], unless the
// info has a checksum.
func ByTime(name string) Tagger {
	return func(length int64, info bytestore.Info) (etag, former []byte) {
		byTime := TimeTag(name, length, info.ModTime)
		if info.Sum != [16]byte{} {
			return peer.SumTag(info.Sum), byTime
		}
		return byTime, nil
	}
}

// TimeTag is the entity tag of a file of which only its time is known. That tells two
// files apart that have the same nar and length, such as one that was compressed again.
func TimeTag(name string, length int64, modified time.Time) []byte {
	etag := append(append(make([]byte, 0, 96), '"'), name...)
	etag = strconv.AppendInt(append(etag, '-'), length, 16)
	etag = strconv.AppendInt(append(etag, '-'), modified.UnixNano(), 16)
	return append(etag, '"')
}

// ByContent makes the entity tag of bytes that have the name wherever they are.
func ByContent(name string) Tagger {
	return func(int64, bytestore.Info) (etag, _ []byte) { return contentTag(name), nil }
}

func contentTag(name string) []byte { return []byte(`"` + name + `"`) }
