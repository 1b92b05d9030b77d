package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"nar-herder/compression"
	"nar-herder/compression/cached"
	"nar-herder/internal/redact"
	"nar-herder/narinfo"
	"nar-herder/peer"
	"nar-herder/storage/index"
	"nar-herder/storage/uses"
)

// cacheDirectory returns the parent of the cached directories that no option names: for the
// default database, that of the original.
func cacheDirectory(database string) string {
	if database == usualDatabase {
		return "/var/cache/nar-herder/nar"
	}
	return following(database, "_cached")
}

// openCache opens the cache of other compressions; nil when none is enabled.
func openCache(store *opened, options cached.Options, peers peer.Peers, counter *uses.Counter, log *slog.Logger) (*cached.Cache, error) {
	if len(options.Types) == 0 {
		return nil, nil
	}
	options.Log, options.Uses = log, counter
	if len(peers) > 0 {
		options.Elsewhere = peers
	}
	cache, err := cached.New(store.index, store.Storage, options)
	if err != nil {
		return nil, err
	}
	for _, t := range options.Types {
		if err := store.lockDirectory("--cached-compression-directory="+t.Name+"=", t.Directory); err != nil {
			return nil, errors.Join(err, cache.Close())
		}
	}
	return cache, nil
}

// advertise records what narinfos will advertise, before any is served. On a full disk
// that is not possible; then narinfos advertise no more than what is recorded, which is
// what withdrawn items are kept for.
func advertise(ctx context.Context, x *index.Index, options *cached.Options, log *slog.Logger) error {
	now := time.Now()
	advertised := options.Advertised()
	err := x.Advertise(ctx, now, advertised)
	if !errors.Is(err, index.ErrFull) {
		return err
	}
	most, mostErr := x.ShortestPromise(ctx, now, maps.Keys(advertised))
	if mostErr != nil {
		return mostErr
	}
	options.LimitTTLs(most)
	log.Error("the times to live of narinfos can't be recorded in the database: until the next start with room for it, they are limited to what was recorded before", "limit", most, "error", err)
	return nil
}

// cacheOptions gathers what the options say of each type.
func (c *serverCommand) cacheOptions() (cached.Options, error) {
	options := cached.Options{
		TTLs: narinfo.TTLs{TTL: (*time.Duration)(c.TTL), NewTTL: (*time.Duration)(c.NewTTL)}, StorageDirectory: localDirectory(c.Storage),
		MinUses: int(c.CachedCompressionMinUses), Workers: int(c.CachedCompressionWorkers),
	}
	for _, enabled := range c.EnableCachedCompression {
		options.Types = append(options.Types, cached.Type{
			Spec: compression.Spec(enabled), Directory: filepath.Join(cacheDirectory(c.Database), enabled.Name), MaxSize: int64(noLimit),
		})
	}
	err := errors.Join(
		eachType("directory", c.CachedCompressionDirectory, options.Types, func(t *cached.Type, v textValue) { t.Directory = string(v) }),
		eachType("directory-max-size", c.CachedCompressionDirectoryMaxSize, options.Types, func(t *cached.Type, v sizeValue) { t.MaxSize = int64(v) }),
		eachType("unused-removal-duration", c.CachedCompressionUnusedRemovalDuration, options.Types, func(t *cached.Type, v ttlValue) { t.Unused = (*time.Duration)(&v) }),
		eachType("ttl", c.CachedCompressionTTL, options.Types, func(t *cached.Type, v ttlValue) { t.TTL = (*time.Duration)(&v) }),
		eachType("new-ttl", c.CachedCompressionNewTTL, options.Types, func(t *cached.Type, v ttlValue) { t.NewTTL = (*time.Duration)(&v) }),
	)
	if err != nil {
		return options, err
	}
	if len(options.Types) == 0 {
		if c.CachedCompressionNarSource != "" {
			return options, usagef("--cached-compression-nar-source: no compression is enabled: add --enable-cached-compression=TYPE")
		}
		return options, nil
	}
	source := c.CachedCompressionNarSource
	if source == "" && c.Storage == "" {
		// There is nothing else to read from.
		source = c.Mirror.String()
	}
	if source != "" {
		if options.Source, err = cached.NewSource(source, peer.Self{AllowPrivateRedirects: c.AllowPrivateRedirects}); err != nil {
			err = fmt.Errorf("--cached-compression-nar-source=%s: %w", redact.Text(source), err)
			if strings.Contains(source, "://") { // not opened yet, so its form is wrong
				err = usageError{err}
			}
			return options, err
		}
	}
	return options, nil
}

// eachType gives the values of an option to the types that they are for.
func eachType[V any, P decoder[V]](option string, values []typed[V, P], types []cached.Type, set func(*cached.Type, V)) error {
	given := make(map[string]bool)
	for _, value := range values {
		i := slices.IndexFunc(types, func(t cached.Type) bool { return t.Name == value.kind })
		if i < 0 {
			return usagef("--cached-compression-%s=%s=…: this type is not enabled: add --enable-cached-compression=%s", option, value.kind, value.kind)
		}
		if given[value.kind] {
			return usagef("--cached-compression-%s: given twice for %s: keep one of them", option, value.kind)
		}
		given[value.kind] = true
		set(&types[i], value.value)
	}
	return nil
}
