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
	"nar-herder/peer/failover"
	"nar-herder/storage/index"
	"nar-herder/storage/location"
	"nar-herder/storage/uses"
)

// cacheDirectory returns the default parent of the cached directories. For the default
// database, it is that of the original.
func cacheDirectory(database string) string {
	if database == defaultDatabase {
		return "/var/cache/nar-herder/nar"
	}
	return besideDatabase(database, "_cached")
}

// openCache opens the cache of nars in further compressions, or returns nil if none is enabled.
func openCache(store *opened, options cached.Options, from *failover.Source, counter *uses.Counter, log *slog.Logger) (*cached.Cache, error) {
	if len(options.Types) == 0 {
		return nil, nil
	}
	options.Log, options.Uses = log, counter
	if from != nil {
		options.Remote = from
	}
	cache, err := cached.New(store.Storage, options)
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

// advertise records the TTLs that narinfos will advertise before any is served, since withdrawn
// items are kept that long. It returns the options with the TTLs to advertise: on a full disk,
// they are limited to those recorded before.
func advertise(ctx context.Context, x *index.Index, options cached.Options, log *slog.Logger) (cached.Options, error) {
	now := time.Now()
	advertised := options.Advertised()
	err := x.Advertise(ctx, now, advertised)
	if !errors.Is(err, index.ErrFull) {
		return options, err
	}
	most, mostErr := x.ShortestGrace(ctx, now, maps.Keys(advertised))
	if mostErr != nil {
		return options, mostErr
	}
	options.LimitTTLs(most)
	log.Error("can't record the TTLs of narinfos in the database: they are limited to those recorded before, until a start with room for it", "limit", most, "error", err)
	return options, nil
}

// cacheOptions returns the options of the cache, with those of each type.
func (c *serverCommand) cacheOptions() (cached.Options, error) {
	options := cached.Options{
		TTLs: narinfo.TTLs{TTL: (*time.Duration)(c.TTL), NewTTL: (*time.Duration)(c.NewTTL)}, StorageDirectory: location.Directory(c.Storage),
		MinUses: int(c.CachedCompressionMinUses), Workers: int(c.CachedCompressionWorkers), Decoders: decoderBudget(),
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
	if source := c.CachedCompressionNarSource; source != "" {
		if options.Source, err = cached.NewSource(source, peer.Self{AllowPrivateRedirects: c.AllowPrivateRedirects}); err != nil {
			err = fmt.Errorf("--cached-compression-nar-source=%s: %w", redact.Text(source), err)
			if strings.Contains(source, "://") { // URLs are only parsed here
				err = usageError{err}
			}
			return options, err
		}
	}
	return options, nil
}

// eachType sets an option's values in the types that they name.
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
