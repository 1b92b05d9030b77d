package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"time"

	"nar-herder/httpapi"
	"nar-herder/internal/disk"
	"nar-herder/mirror"
	"nar-herder/mirror/dump"
	"nar-herder/mirror/nars"
	"nar-herder/peer"
	"nar-herder/removal"
	"nar-herder/storage/dbspace"
	"nar-herder/storage/index"
)

const (
	// bucketInterval is how often nars are looked at in a bucket, where requests cost
	// money.
	bucketInterval = 30 * time.Second
	// missingShown is for how long the health warns of missing nars after it met some.
	missingShown = 2 * time.Minute
	// damageShown is for how long it warns of damage in the index after it was met.
	damageShown = time.Hour
)

// healthParts are what the health of a server is about. The last three may be nil.
type healthParts struct {
	store     *opened
	directory string // of the nars; "" for none
	database  *dbspace.Watch
	dumps     *dump.Maker
	unstored  *unstoredCount
	peers     peer.Peers
	withdrawn *removal.Withdrawn
	ownership *ownership
	remover   *removal.Remover
	follower  *mirror.Mirror
	fetcher   *nars.Fetcher
}

// list returns the parts that this server has. docs/monitoring.md describes them.
func (h healthParts) list() (parts []httpapi.Part) {
	stores, owns := h.store.HasBytes(), h.ownership.claim != nil
	var interval time.Duration
	if h.store.IsRemote() {
		interval = bucketInterval
	}
	sample := &narSample{store: h.store}
	for _, part := range []struct {
		name   string
		exists bool
		needed bool
		look   func(context.Context) error
	}{
		{"database", true, true, h.store.TryIndex},
		{"database_damage", true, false, warns(func() []string { return damageWarnings(h.store.index) })},
		{"database_space", true, false, warns(h.database.Warnings)},
		{"storage", stores, true, sample.try},
		{"storage_owner", owns, false, warns(h.ownership.Warnings)},
		{"storage_writes", owns, false, h.tryWriting},
		{"storage_space", h.remover != nil, false, warns(h.remover.Warnings)},
		{"withdrawn_items", true, false, warns(h.withdrawn.Warnings)},
		{"items_without_nars", true, false, warns(h.unstored.warnings(h.peers))},
		{"dumps", true, false, warns(h.dumps.Warnings)},
		{"mirror", h.follower != nil, false, warns(h.follower.Warnings)},
		{"mirror_nars", h.fetcher != nil, false, warns(h.fetcher.Warnings)},
	} {
		if part.exists {
			parts = append(parts, httpapi.Part{Name: part.name, Needed: part.needed, Look: part.look})
			if part.name == "storage" || part.name == "storage_writes" {
				parts[len(parts)-1].Interval = interval
			}
		}
	}
	return parts
}

// narSample tries to read some nars.
type narSample struct {
	store   *opened
	warning string
	at      time.Time // when the warning was found
}

// try returns an error if no nars can be read. A warning stays for a while: the next
// sample need not have any of the nars that are missing.
func (n *narSample) try(ctx context.Context) error {
	warning, err := n.store.TryReading(ctx)
	if err != nil {
		return err
	}
	if now := time.Now(); warning != "" {
		n.warning, n.at = warning, now
	} else if now.Sub(n.at) > missingShown {
		return nil
	}
	return httpapi.Warnings{n.warning}
}

// tryWriting returns an error if nars can't be added to the storage or removed, with the
// command that helps. Serving needs no permission to write.
func (h healthParts) tryWriting(ctx context.Context) error {
	if len(h.ownership.Warnings()) > 0 {
		return httpapi.Warnings{"this server does not write to the storage: see storage_owner"}
	}
	err := h.store.TryWriting(ctx)
	if h.directory == "" || err != nil && !errors.Is(err, fs.ErrPermission) {
		return err
	}
	nars := filepath.Join(h.directory, "nar")
	return cmp.Or(disk.Unwritable(h.directory, nars, filepath.Join(nars, "lzip"), filepath.Join(nars, "zstd"), filepath.Join(nars, "gzip")), err)
}

// warns makes the function of a part of one that returns warnings.
func warns(warnings func() []string) func(context.Context) error {
	return func(context.Context) error {
		if texts := warnings(); len(texts) > 0 {
			return httpapi.Warnings(texts)
		}
		return nil
	}
}

// damageWarnings are about damage in the index.
func damageWarnings(x *index.Index) []string {
	count, last := x.Damages()
	if count == 0 || time.Since(last) > damageShown {
		return nil
	}
	return []string{fmt.Sprintf("the database is damaged: requests for some narinfos fail, the last at %s: run 'nar-herder check'", last.UTC().Format(time.RFC3339))}
}
