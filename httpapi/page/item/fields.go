package item

import (
	"bytes"
	"slices"
	"strings"

	"nar-herder/httpapi/page"
	"nar-herder/narinfo"
)

// field is a field of the narinfo, in words.
type field struct {
	Name, Value string
	Means       string
}

// means explains the fields of narinfos. Those of files are in the table of files.
var means = map[string]string{
	"StorePath":  "Where Guix installs the item. The 32 characters after /gnu/store/ name it on every substitute server.",
	"NarHash":    "SHA-256 of the nar, the item as one archive. Guix compares it after each download.",
	"NarSize":    "Length of the nar without compression: about what the item takes on the disk.",
	"References": "The items that this one needs to work. Guix fetches them, too.",
	"System":     "The kind of machine that it was built for.",
	"Deriver":    "The derivation that it was built by: the recipe, with all inputs.",
	"Signature":  "Signs all lines above it; see its verdict above.",
}

// inFiles are the fields that the table of files shows.
var inFiles = []string{"URL", "Compression", "FileSize", "FileHash"}

const (
	// mostFields bounds the fields that are shown, and longestValue their values in bytes.
	// Strangers write narinfos.
	mostFields   = 40
	longestValue = 300
)

// fields returns the fields of a narinfo in its order, without those of files.
func fields(n *narinfo.Narinfo) (all []field) {
	for line := range bytes.Lines(n.Text) {
		name, value, found := strings.Cut(strings.TrimSuffix(string(line), "\n"), ":")
		if !found || line[0] == '#' || line[0] == '+' || slices.Contains(inFiles, name) {
			continue
		}
		if len(all) == mostFields {
			break
		}
		f := field{name, strings.TrimSpace(value), means[name]}
		switch name {
		case "NarSize":
			if n.NarSize >= 1024 {
				f.Value += " (" + page.Bytes(n.NarSize) + ")"
			}
		case "References":
			f.Value = page.Plural(int64(len(n.References)), "item")
		case "Signature":
			f.Value = shorten(f.Value, 60)
		}
		if f.Means == "" {
			f.Means = "Guix ignores this field."
		}
		f.Name, f.Value = shorten(f.Name, longestValue), shorten(f.Value, longestValue)
		all = append(all, f)
	}
	return all
}

// shorten cuts a text, which is valid UTF-8, to a length in bytes.
func shorten(text string, most int) string {
	if len(text) <= most {
		return text
	}
	return strings.ToValidUTF8(text[:most], "") + "…"
}
