package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"nar-herder/httpapi/health"
	"nar-herder/httpapi/keypair"
	"nar-herder/internal/disk"
	"nar-herder/storage/index"
	"nar-herder/storage/probe"
)

const (
	// bucketInterval is the interval of checks in a bucket, where requests cost money.
	bucketInterval = 30 * time.Second
	// missingShown is how long the health warns about missing nars after a sample had some.
	missingShown = 2 * time.Minute
	// damageShown is how long it warns about damage in the index after it was found.
	damageShown = time.Hour
)

// health returns the parts of /health that this server has. directory is the local storage,
// or "", and certificate is nil without HTTPS.
func (s *subsystems) health(directory string, certificate *keypair.Keeper) (parts []health.Part) {
	stores, owns := s.store.HasBytes(), s.ownership.claim != nil
	var interval time.Duration
	if s.store.IsRemote() {
		interval = bucketInterval
	}
	sample := &narSample{store: s.store}
	for _, part := range []struct {
		name   string
		exists bool
		needed bool
		look   func(context.Context) error
	}{
		{"database", true, true, func(ctx context.Context) error { return probe.Index(ctx, s.store.Storage) }},
		{"database_damage", true, false, warns(func() []string { return damageWarnings(s.store.index) })},
		{"database_space", true, false, warns(s.room.Warnings)},
		{"storage", stores, true, sample.try},
		{"storage_owner", owns, false, warns(s.ownership.Warnings)},
		{"storage_writes", owns, false, func(ctx context.Context) error { return s.tryWriting(ctx, directory) }},
		{"storage_space", s.remover != nil, false, warns(s.remover.Warnings)},
		{"scrub", s.scrubber != nil, false, warns(s.scrubber.Warnings)},
		{"withdrawn_items", true, false, warns(s.withdrawn.Warnings)},
		{"items_without_nars", true, false, warns(s.unstored.warnings(s.passing != nil))},
		{"dumps", true, false, warns(s.dumps.Warnings)},
		{"mirror", s.follower != nil, false, warns(s.follower.Warnings)},
		{"upstreams", s.upstreams != nil, false, warns(s.upstreamWarnings)},
		{"mirror_nars", s.fetcher != nil, false, warns(s.fetcher.Warnings)},
		{"tls_certificate", certificate != nil, false, warns(certificate.Warnings)},
		{"advertisement", s.responder != nil, false, warns(s.responder.Warnings)},
	} {
		if part.exists {
			parts = append(parts, health.Part{Name: part.name, Needed: part.needed, Look: part.look})
			if part.name == "storage" || part.name == "storage_writes" {
				parts[len(parts)-1].Interval = interval
			}
		}
	}
	return parts
}

// narSample checks a sample of the stored nars.
type narSample struct {
	store   *opened
	warning string
	at      time.Time // of the warning
}

// try returns an error if no nars can be read. A warning stays for a while, since the next
// sample may not include any missing nar.
func (n *narSample) try(ctx context.Context) error {
	warning, err := probe.Reading(ctx, n.store.Storage)
	if err != nil {
		return err
	}
	if now := time.Now(); warning != "" {
		n.warning, n.at = warning, now
	} else if now.Sub(n.at) > missingShown {
		return nil
	}
	return health.Warnings{n.warning}
}

// tryWriting returns an error, with a command that helps, if nars can't be added to the
// storage or removed. Serving does not need that permission.
func (s *subsystems) tryWriting(ctx context.Context, directory string) error {
	if len(s.ownership.Warnings()) > 0 {
		return health.Warnings{"this server does not write to the storage: see storage_owner"}
	}
	err := probe.Writing(ctx, s.store.Storage)
	if directory == "" || err != nil && !errors.Is(err, fs.ErrPermission) {
		return err
	}
	nars := filepath.Join(directory, "nar")
	return cmp.Or(disk.Unwritable(directory, nars, filepath.Join(nars, "lzip"), filepath.Join(nars, "zstd"), filepath.Join(nars, "gzip")), err)
}

// warns turns a function that returns warnings into that of a part.
func warns(warnings func() []string) func(context.Context) error {
	return func(context.Context) error {
		if texts := warnings(); len(texts) > 0 {
			return health.Warnings(texts)
		}
		return nil
	}
}

// damageWarnings returns warnings about recent damage in the index.
func damageWarnings(x *index.Index) []string {
	count, last := x.Damages()
	if count == 0 || time.Since(last) > damageShown {
		return nil
	}
	return []string{fmt.Sprintf("the database is damaged: requests for some narinfos fail, the last at %s: run 'nar-herder check'", last.UTC().Format(time.RFC3339))}
}

// damageMetric counts damage in the index.
func damageMetric(x *index.Index) prometheus.Collector {
	return prometheus.NewCounterFunc(prometheus.CounterOpts{
		Name: "narherder_index_damaged_texts_total", Help: "Failed reads of narinfos that are damaged in the index.",
	}, func() float64 {
		count, _ := x.Damages()
		return float64(count)
	})
}
