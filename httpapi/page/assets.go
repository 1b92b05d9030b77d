package page

import (
	"crypto/sha256"
	"encoding/hex"
	"strings"
)

// assetFolder is the first segment of the paths of assets.
const assetFolder = "page"

// asset is a file that pages use.
type asset struct {
	kind    string // media type
	body    []byte
	version string
	tag     string // ETag
}

// AddAsset adds a file, such as a script, that the site serves below /page/. Templates get its
// URL from [View.Asset].
func (s *Site) AddAsset(name, contentType string, body []byte) {
	sum := sha256.Sum256(body)
	version := hex.EncodeToString(sum[:8])
	s.assets[name] = asset{contentType, body, version, `"` + version + `"`}
}

// assetPath returns the path of an asset, with its version: an upgrade of the program must not
// mix new pages with old assets from caches.
func (s *Site) assetPath(name string) string {
	return assetFolder + "/" + name + "?v=" + s.assets[name].version
}

// assetOf returns the asset of a path, or nil.
func (s *Site) assetOf(segments []string) *asset {
	if len(segments) != 2 || segments[0] != assetFolder || s.options.Size == Off {
		return nil
	}
	if a, ok := s.assets[segments[1]]; ok {
		return &a
	}
	return nil
}

func (a *asset) cacheControl(query string) string {
	if query == "v="+a.version {
		return "public, max-age=31536000, immutable"
	}
	return "no-cache"
}

func (a *asset) matches(ifNoneMatch string) bool {
	return strings.Contains(ifNoneMatch, a.tag) || strings.TrimSpace(ifNoneMatch) == "*"
}
