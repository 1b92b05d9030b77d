package httpapi

import (
	"strings"

	"nar-herder/httpapi/content"
	"nar-herder/peer"
	"nar-herder/storage"
	"nar-herder/storage/bytestore"
	"nar-herder/storage/checksums"
)

// tagOf makes the entity tag of a file of the item: by its checksum, which is the same on
// all instances that serve the same bytes, or by its time until that is known. A bucket
// has the checksums of what this program has uploaded; of files on this machine they are
// computed when they are used first. To read an object once more for that would double
// what its first download costs.
func (s *Server) tagOf(item *nars, file, compression string, open checksums.Opener) content.Tagger {
	return func(length int64, info bytestore.Info) (etag, former []byte) {
		if info.Sum != [16]byte{} {
			return peer.SumTag(info.Sum), nil
		}
		byTime := content.TimeTag(narTag(item.Item, compression)+version(info), length, info.ModTime)
		for _, sum := range item.sums {
			if sum.File == file && sum.Size == info.Size && sum.Changed.Equal(info.Changed) {
				return peer.SumTag(sum.Sum), byTime
			}
		}
		if s.options.Checksums != nil && !info.Changed.IsZero() {
			s.options.Checksums.Want(item.Hash, file, open)
		}
		return byTime, nil
	}
}

// version is for contents of one file that have the same time, as in a bucket all of one
// second have. A store's own tag tells them apart, if an entity tag can contain it.
func version(info bytestore.Info) string {
	if info.Tag == "" || strings.ContainsFunc(info.Tag, func(r rune) bool { return r <= ' ' || r > '~' || r == '"' || r == ',' }) {
		return ""
	}
	return "-" + info.Tag
}

// narTag begins the entity tag of an item's nar in a compression.
func narTag(item *storage.Item, compression string) string {
	return item.Narinfo.NarHash.String()[len("sha256:"):][:16] + "-" + compression
}
