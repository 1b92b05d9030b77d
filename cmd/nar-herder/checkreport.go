package main

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"nar-herder/internal/redact"
	"nar-herder/storage/check"
)

// checkReport prints and counts the findings of a check.
type checkReport struct {
	out    io.Writer
	json   bool
	totals checkTotals
	// quarantined are the files in quarantine, including those that this check moved there.
	quarantined map[string]struct{}
	// refused says that clients refuse some narinfos.
	refused bool
}

func newCheckReport(out io.Writer, json bool) *checkReport {
	return &checkReport{out: out, json: json, totals: newCheckTotals(), quarantined: make(map[string]struct{})}
}

// checkTotals is the last line of --json.
type checkTotals struct {
	// Looked counts the rows and files that were compared.
	Looked        int64 `json:"looked"`
	VerifiedFiles int64 `json:"verified_files"`
	VerifiedBytes int64 `json:"verified_bytes"`
	FetchedBytes  int64 `json:"fetched_bytes"`
	// Findings counts by kind, and Repairs by outcome. The number of quarantined files is
	// that at the end.
	Findings map[string]int64 `json:"findings"`
	Repairs  map[string]int64 `json:"repairs"`
	Repaired int64            `json:"repaired"`
	// Remaining counts findings that are not repaired, and Unknown failed checks.
	Remaining int64 `json:"remaining"`
	Unknown   int64 `json:"unknown"`
	Complete  bool  `json:"complete"`
	Status    int   `json:"status"`
}

func newCheckTotals() checkTotals {
	return checkTotals{Findings: map[string]int64{}, Repairs: map[string]int64{}}
}

// foundLine is a finding in JSON.
type foundLine struct {
	Kind       string      `json:"kind"`
	StorePath  string      `json:"store_path,omitempty"`
	File       string      `json:"file,omitempty"`
	Hash       string      `json:"hash,omitempty"` // where the store path isn't known
	Note       string      `json:"note,omitempty"`
	References []string    `json:"missing_references,omitempty"`
	Error      string      `json:"error,omitempty"`
	Repair     *repairLine `json:"repair,omitempty"`
}

type repairLine struct {
	Outcome string `json:"outcome"`
	Mended  bool   `json:"mended"`
	Note    string `json:"note,omitempty"`
	Error   string `json:"error,omitempty"`
}

// add reports a finding, or the error in its place, and its repair, which is nil without
// --repair.
func (r *checkReport) add(finding check.Finding, err error, repair *check.Repair) {
	if finding.Kind == check.Quarantined && err == nil {
		if _, known := r.quarantined[finding.Name]; known {
			return // its repair reported it
		}
		r.quarantined[finding.Name] = struct{}{}
	}
	if repair != nil && repair.Quarantined != "" {
		r.quarantined[repair.Quarantined] = struct{}{}
	}
	if finding.Partial && err == nil && (repair == nil || repair.Outcome == check.Untouched && repair.Err == nil) {
		return // the sources don't have it either
	}
	r.refused = r.refused || finding.Kind.IsAboutSignature()
	line := foundLine{Kind: finding.Kind.String(), File: finding.Name, Note: finding.Note}
	if finding.Item != nil {
		line.StorePath = finding.Item.Narinfo.StorePath.String()
	}
	if finding.Damage != nil && finding.Damage.Dictionary == 0 && finding.Damage.Change == 0 {
		line.Hash = finding.Damage.Hash.String()
	}
	for _, reference := range finding.References {
		line.References = append(line.References, reference.String())
	}
	r.totals.Findings[line.Kind]++
	if repair != nil && *repair != (check.Repair{}) {
		line.Repair = &repairLine{Outcome: repair.Outcome.String(), Mended: repair.Mended, Note: repair.Note}
		if repair.Err != nil {
			line.Repair.Error = oneLine(repair.Err)
		}
		if repair.Outcome != check.Untouched {
			r.totals.Repairs[line.Repair.Outcome]++
		}
		if repair.Outcome == check.Fetched {
			r.totals.FetchedBytes += repair.Bytes
		}
	}
	switch {
	case err != nil:
		line.Error = oneLine(err)
		r.totals.Unknown++
	case finding.IsNotice():
	case repair != nil && repair.Mended:
		r.totals.Repaired++
	default:
		r.totals.Remaining++
	}
	if r.json {
		_ = json.NewEncoder(redact.JSON{W: r.out}).Encode(line) // fails when the pipe is closed
		return
	}
	printf(r.out, "%s\n", line.String())
}

// String returns the line for people.
func (l foundLine) String() string {
	text := new(strings.Builder)
	text.WriteString(l.Kind)
	separator := ": "
	for _, part := range []string{l.File, l.StorePath, l.Note, l.Error} {
		if part != "" && (part != l.StorePath || l.File == "") {
			text.WriteString(separator + part)
		} else if part != "" {
			text.WriteString(" of " + part)
		}
	}
	if l.Repair != nil && (l.Repair.Outcome != check.Untouched.String() || l.Repair.Error != "") {
		text.WriteString("; " + l.Repair.Outcome)
		separator = ": "
		for _, part := range []string{l.Repair.Note, l.Repair.Error} {
			if part != "" {
				text.WriteString(separator + part)
				separator = "; "
			}
		}
	}
	return text.String()
}

// end prints the totals and returns the exit status.
func (r *checkReport) end() statusError {
	t := &r.totals
	if len(r.quarantined) > 0 {
		t.Findings[check.Quarantined.String()] = int64(len(r.quarantined))
	}
	status := statusError(0)
	switch {
	case !t.Complete:
		status = statusUnknown
	case t.Remaining > 0:
		status = statusFailed
	}
	t.Status = int(status)
	if r.json {
		_ = json.NewEncoder(redact.JSON{W: r.out}).Encode(map[string]*checkTotals{"totals": t})
		return status
	}
	parts := []string{fmt.Sprintf("%d rows and files compared", t.Looked)}
	if t.VerifiedFiles > 0 {
		parts = append(parts, fmt.Sprintf("%d files verified, %s", t.VerifiedFiles, byteCount(t.VerifiedBytes)))
	}
	for _, kind := range slices.Sorted(maps.Keys(t.Findings)) {
		parts = append(parts, fmt.Sprintf("%d %s", t.Findings[kind], kind))
	}
	for _, outcome := range slices.Sorted(maps.Keys(t.Repairs)) {
		parts = append(parts, fmt.Sprintf("%d %s", t.Repairs[outcome], outcome))
	}
	verdict := "nothing is wrong"
	switch {
	case status == statusUnknown:
		verdict = "the check is not complete"
	case status == statusFailed:
		verdict = fmt.Sprintf("%d remain wrong", t.Remaining)
	case t.Repaired > 0:
		verdict = "all that was wrong is repaired"
	}
	printf(r.out, "%s: %s\n", strings.Join(parts, ", "), verdict)
	if r.refused {
		fmt.Fprintln(r.out, "next: for narinfos that clients refuse, import them again with the signature of an authorized key, authorize the key, or remove the items with 'nar-herder remove'")
	}
	return status
}
