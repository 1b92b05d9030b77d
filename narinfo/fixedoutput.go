package narinfo

import (
	"crypto/sha256"
	"encoding/hex"
)

// FixedOutputPath returns the store path of a file with a known sha256: the output of a
// fixed-output derivation that isn't recursive, such as a source archive. It is
// fixed-output-path in Guix's (guix store). The error says what is wrong with name.
func FixedOutputPath(name string, sum [sha256.Size]byte) (StorePath, error) {
	if err := checkName(name); err != nil {
		return StorePath{}, err
	}
	inner := sha256.Sum256([]byte("fixed:out:sha256:" + hex.EncodeToString(sum[:]) + ":"))
	outer := sha256.Sum256([]byte("output:out:sha256:" + hex.EncodeToString(inner[:]) + ":" + StoreDir + ":" + name))
	path := StorePath{Name: name}
	for i, b := range outer {
		path.Hash[i%len(path.Hash)] ^= b
	}
	return path, nil
}
