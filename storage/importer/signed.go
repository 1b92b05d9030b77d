package importer

import (
	"bytes"
	"context"
	"errors"
	"slices"

	"nar-herder/narinfo"
	"nar-herder/storage"
	"nar-herder/storage/index"
)

// withKnownSignature returns the narinfo of the index instead of an unsigned one that differs
// from it in nothing but its valid signature: items that were signed here stay signed when their
// unsigned files are imported again.
func (im *Importer) withKnownSignature(ctx context.Context, n *narinfo.Narinfo) (*narinfo.Narinfo, error) {
	if n.Signature() != "" {
		return n, nil
	}
	known, err := im.Item(ctx, n.StorePath.Hash)
	switch {
	case errors.Is(err, storage.ErrNotFound), errors.Is(err, index.ErrDamaged):
		return n, nil
	case err != nil:
		return nil, err
	}
	if bytes.Equal(withoutSignature(known.Text), n.Text) && storage.Authorize(known.Narinfo, im.Keys()) == nil {
		return known.Narinfo, nil
	}
	return n, nil
}

// withoutSignature returns the text of a narinfo without its field Signature.
func withoutSignature(text []byte) []byte {
	rest := make([]byte, 0, len(text))
	inside := false
	for line := range bytes.Lines(text) {
		if inside = bytes.HasPrefix(line, []byte("Signature:")) || inside && line[0] == '+'; !inside {
			rest = append(rest, line...)
		}
	}
	return slices.Clip(rest)
}

// losesSignature reports whether an addition would replace a signed narinfo of the same nar by an
// unsigned one.
func (p *prepared) losesSignature(old *storage.Item) bool {
	return p.Narinfo.Signature() == "" && old.Narinfo.Signature() != "" && old.Narinfo.NarHash == p.Narinfo.NarHash && !p.Replace
}
