package main

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"sync/atomic"
	"time"

	"nar-herder/mirror/bootstrap"
	"nar-herder/mirror/cursor"
	"nar-herder/mirror/health"
	"nar-herder/mirror/original"
	"nar-herder/mirror/original/convert"
	"nar-herder/peer"
	"nar-herder/storage/index"
	"nar-herder/storage/location"
	"nar-herder/storage/owner"
)

// prepare makes a database that this version can open: it converts one of the original,
// downloads one from the mirrored instance if there is none, and migrates an old one. It may
// return nil when the context has ended.
func (c *serverCommand) prepare(ctx context.Context, config *serverConfig, s *sockets, log *slog.Logger) error {
	if err := index.CheckLog(c.Database); err != nil {
		return err
	}
	begin := func(ctx context.Context, s *sockets, log *slog.Logger) error {
		return c.beginMirror(ctx, config, s, log)
	}
	for _, step := range []func(context.Context, *sockets, *slog.Logger) error{c.convertInPlace, begin, c.migrate} {
		if err := step(ctx, s, log); err != nil || ctx.Err() != nil {
			return err
		}
	}
	return nil
}

// convertInterval is how often the progress of a conversion is logged.
const convertInterval = 10 * time.Second

// convertedSetting names the storage that an index had when it was converted. Even a
// mirror claims that storage, with the nars in it.
const convertedSetting = "converted-storage"

// convertInPlace converts a database of the original.
func (c *serverCommand) convertInPlace(ctx context.Context, s *sockets, log *slog.Logger) (err error) {
	if !convert.Needed(ctx, c.Database) {
		return nil
	}
	next := time.Now().Add(convertInterval)
	var done, all atomic.Int64
	options := convert.Options{Log: log, Progress: func(p convert.Progress) {
		done.Store(p.Done)
		all.Store(p.All)
		if now := time.Now(); now.After(next) {
			next = now.Add(convertInterval)
			log.Info("converting the database of the original", "narinfos", p.Done, "all", p.All)
		}
	}}
	closeStorage, err := openForConversion(ctx, &options, c.Storage)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, closeStorage()) }()
	if c.Mirror != nil {
		// The original mirrored the same source until now, and stored its nars.
		options.Mirrored = true
		options.Settings = func(ctx context.Context, from *original.Database) (map[string]string, error) {
			settings, err := cursor.ConvertedSettings(ctx, from)
			if bytes, ok := options.Storage.(location.Store); err == nil && ok {
				if settings == nil {
					settings = make(map[string]string)
				}
				settings[convertedSetting] = bytes.String()
			}
			return settings, err
		}
	}
	state := func() any {
		return struct {
			Status string `json:"status"`
			Done   int64  `json:"narinfos_done"`
			All    int64  `json:"narinfos"`
		}{"converting", done.Load(), all.Load()}
	}
	return s.whileStarting(ctx, state, func(ctx context.Context) error {
		_, err := convert.InPlace(ctx, c.Database, options)
		return err
	})
}

// beginMirror downloads the database of a mirror that has none yet.
func (c *serverCommand) beginMirror(ctx context.Context, config *serverConfig, s *sockets, log *slog.Logger) error {
	if c.Mirror == nil {
		return nil
	}
	if _, err := os.Stat(c.Database); !errors.Is(err, fs.ErrNotExist) {
		return nil // opening it reports any other error
	}
	if c.Storage != "" && !c.StorageReadOnly {
		bytes, err := location.Open(ctx, c.Storage, log)
		if err != nil {
			return err
		}
		if err := errors.Join(mayBegin(ctx, c.Database, bytes, owner.IfEmpty), bytes.Close()); err != nil {
			return err
		}
	}
	beginning := bootstrap.New(c.Database, peer.New(c.Mirror.URL, peer.Self{AllowPrivateRedirects: c.AllowPrivateRedirects}), log)
	beginning.Keys = config.keys.mirror
	state := func() any {
		return struct {
			Status string       `json:"status"`
			Mirror mirrorStatus `json:"mirror"`
		}{health.Syncing, mirrorStatus{Status: beginning.Status()}}
	}
	return s.whileStarting(ctx, state, beginning.Run)
}

// migrate migrates a database of an older version.
func (c *serverCommand) migrate(ctx context.Context, s *sockets, log *slog.Logger) error {
	if !index.NeedsMigration(ctx, c.Database) {
		return nil
	}
	start := time.Now()
	log.Info("migrating the database to the schema of this version; the old one is copied first", "database", c.Database)
	state := func() any {
		return struct {
			Status string `json:"status"`
		}{"migrating"}
	}
	return s.whileStarting(ctx, state, func(ctx context.Context) error {
		done, err := index.Migrate(ctx, c.Database)
		if err == nil {
			log.Info("migrated the database", "database", c.Database, "from", done.From, "to", done.To, "kept", done.Copy,
				"duration", time.Since(start).Round(time.Millisecond))
		}
		return err
	})
}
