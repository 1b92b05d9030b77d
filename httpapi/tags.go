package httpapi

import (
	"nar-herder/httpapi/content"
	"nar-herder/peer"
	"nar-herder/storage"
	"nar-herder/storage/bytestore"
	"nar-herder/storage/checksums"
)

// tagOf makes the entity tag of a file of the item from its checksum, so that all instances
// with the same bytes have the same tag, or from its time until the checksum is known. Buckets
// store the checksums of files that this program has uploaded. Checksums of local files are
// computed at their first use. They are not computed for other objects in a bucket, as that
// would double the cost of the first download.
func (s *Server) tagOf(item *nars, file, compression string, open checksums.Opener) content.Tagger {
	return func(length int64, info bytestore.Info) (etag, former []byte) {
		if info.Sum != [16]byte{} {
			return peer.SumTag(info.Sum), nil
		}
		byTime := content.TimeTag(narTag(item.Item, compression)+content.Version(info), length, info.ModTime)
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

// narTag returns the beginning of the entity tag of an item's nar in a compression.
func narTag(item *storage.Item, compression string) string {
	return item.Narinfo.NarHash.String()[len("sha256:"):][:16] + "-" + compression
}
