// Package publishcache knows where 'guix publish --cache=DIR' keeps narinfos and nars:
//
//	DIR/TYPE/HASH-NAME.narinfo
//	DIR/TYPE/HASH-NAME.nar
//
// TYPE is a compression. An item has a narinfo in the directory of each compression that it was
// published in. They are hard links to one text, which names the nars of all. Names are not
// percent-encoded. Unfinished files have other suffixes. DIR/hashes has files of another kind.
package publishcache

import (
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"nar-herder/narinfo"
)

// Hashes is the name of a cache's directory without narinfos.
const Hashes = "hashes"

// none is the type of uncompressed nars, the only one that isn't part of their URLs.
const none = "none"

// types are the possible names of a cache's directories with narinfos.
var types = []string{"bzip2", "gzip", "lzip", none, "xz", "zstd"}

// Of returns the cache that has a narinfo file, "" if its name isn't one of a cache.
func Of(file string) string {
	stem, ok := strings.CutSuffix(filepath.Base(file), ".narinfo")
	if _, err := narinfo.ParseBaseName(stem); !ok || err != nil {
		return ""
	}
	directory := filepath.Dir(file)
	if base := filepath.Base(directory); base == "." || base == ".." {
		absolute, err := filepath.Abs(directory)
		if err != nil {
			return ""
		}
		directory = absolute
	}
	if !slices.Contains(types, filepath.Base(directory)) {
		return ""
	}
	return filepath.Dir(directory)
}

// Names returns where below a cache the nar with a name in storages may be. Some versions of
// 'guix publish' keep nars in DIR/nar, or without the suffix.
func Names(nar string) []string {
	kind, base, ok := strings.Cut(strings.TrimPrefix(nar, "nar/"), "/")
	if !ok {
		kind, base = none, kind
	}
	below := path.Join(kind, base)
	return []string{below + ".nar", path.Join("nar", below) + ".nar", below, path.Join("nar", below)}
}

// Types returns the directories with narinfos that a cache has. It leaves out links.
func Types(cache string) (directories []string) {
	for _, name := range types {
		directory := filepath.Join(cache, name)
		if info, err := os.Lstat(directory); err == nil && info.IsDir() {
			directories = append(directories, directory)
		}
	}
	return directories
}

// IsDuplicate reports whether another of the directories has the narinfo to use for the item
// of a file. Of several, that is the one that was modified last: 'guix publish' doesn't update
// old narinfos when its compressions change. Of hard links, it is the first.
func IsDuplicate(file string, directories []string) bool {
	own, base := filepath.Split(file)
	own = filepath.Clean(own)
	info, err := os.Stat(file)
	if err != nil {
		return false
	}
	for _, directory := range directories {
		if directory == own {
			continue
		}
		other, err := os.Stat(filepath.Join(directory, base))
		if err != nil || !other.Mode().IsRegular() {
			continue
		}
		if c := other.ModTime().Compare(info.ModTime()); c > 0 || c == 0 && directory < own {
			return true
		}
	}
	return false
}
