package main

import (
	"cmp"
	"maps"
	"slices"

	"nar-herder/narinfo"
	"nar-herder/storage/resign"
)

// signSummary prints failures, and counts the outcomes by the signer whose signature a narinfo
// had before.
type signSummary struct {
	s        *streams
	dryRun   bool
	progress *progress
	counts   map[signCount]int
	failed   int
}

type signCount struct {
	outcome resign.Outcome
	signer  string // "" where it doesn't matter
}

func newSignSummary(s *streams, dryRun bool) *signSummary {
	return &signSummary{s: s, dryRun: dryRun, counts: make(map[signCount]int), progress: newProgress(s.err, "signing", "narinfos", 0)}
}

// begin sets the number of narinfos for the progress.
func (t *signSummary) begin(total int64) { t.progress.expect(total) }

// fail reports what was named and can't be signed.
func (t *signSummary) fail(what string, err error) {
	t.failed++
	t.progress.clear()
	printf(t.s.err, "nar-herder: sign %s: %v\n", what, err)
}

// add counts the result for an item.
func (t *signSummary) add(r resign.Result) {
	name := r.Hash.String()
	if r.Narinfo != nil {
		name = r.Narinfo.StorePath.String()
	}
	t.addFile(name, r)
}

// addFile counts the result for a file, or for an item with that name.
func (t *signSummary) addFile(name string, r resign.Result) {
	t.progress.add(0)
	if r.Outcome == resign.Failed {
		t.fail(name, r.Err)
		return
	}
	count := signCount{outcome: r.Outcome}
	if r.Outcome == resign.Replaced || r.Outcome == resign.Kept {
		count.signer = presentSigner(r.Narinfo)
		if _, known := t.counts[count]; !known && len(t.counts) >= mostSigners {
			count.signer = "others"
		}
	}
	t.counts[count]++
}

// mostSigners bounds the signers that are counted.
const mostSigners = 100

// presentSigner names the signer of a narinfo.
func presentSigner(n *narinfo.Narinfo) string {
	key, err := n.SigningKey()
	if err != nil {
		return "an unknown signer"
	}
	return resign.Host(n) + ", key " + shortKey(key)
}

// incomplete reports whether some narinfos don't have a signature by the key.
func (t *signSummary) incomplete() bool {
	for count := range t.counts {
		if count.outcome == resign.Kept || count.outcome == resign.OfSource {
			return true
		}
	}
	return t.failed > 0
}

// end prints the counts.
func (t *signSummary) end() {
	t.progress.end()
	done := "signed"
	if t.dryRun {
		done = "would be signed"
	}
	total := t.counts[signCount{outcome: resign.Signed}]
	order := slices.SortedFunc(maps.Keys(t.counts), func(a, b signCount) int {
		return cmp.Or(cmp.Compare(a.outcome, b.outcome), cmp.Compare(t.counts[b], t.counts[a]), cmp.Compare(a.signer, b.signer))
	})
	for _, count := range order {
		if count.outcome == resign.Replaced {
			total += t.counts[count]
		}
	}
	printf(t.s.out, "%s %s\n", countOf(total, "narinfo"), done)
	for _, count := range order {
		format := ""
		switch count.outcome {
		case resign.Signed:
			format = "%d had no signature%s\n"
		case resign.Replaced:
			format = "%d lost the signature by %s\n"
			if t.dryRun {
				format = "%d would lose the signature by %s\n"
			}
		case resign.Current:
			format = "%d have a signature by this key already%s\n"
		case resign.Kept:
			format = "%d not signed: they have a valid signature by %s: --replace replaces it\n"
		case resign.OfSource:
			format = "%d not signed: the mirrored instance has them, and would restore its narinfos: sign them there, or use --mirrored%s\n"
		case resign.Withdrawn:
			format = "%d not signed: they are withdrawn%s\n"
		case resign.Removed:
			format = "%d were removed meanwhile%s\n"
		}
		printf(t.s.out, "  "+format, t.counts[count], count.signer)
	}
	if t.failed > 0 {
		printf(t.s.out, "  %d failed\n", t.failed)
	}
}
