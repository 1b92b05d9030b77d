package main

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"nar-herder/mirror"
	"nar-herder/mirror/original"
	"nar-herder/mirror/original/convert"
	"nar-herder/peer"
	"nar-herder/storage/index"
	"nar-herder/storage/owner"
	"net"
	"os"
	"sync/atomic"
	"time"
)

// convertProgress is how often the log tells how far a conversion is.
const convertProgress = 10 * time.Second

// convertedSetting is the storage that an index had from the start, when it was made of
// a database of the original: even a mirror claims it, with the nars that are there.
const convertedSetting = "converted-storage"

// convertInPlace makes a database of the original an index, while the listeners
// are answered.
func (c *serverCommand) convertInPlace(ctx context.Context, listeners []net.Listener, log *slog.Logger) (err error) {
	if !convert.Needed(ctx, c.Database) {
		return nil
	}
	start := time.Now()
	next := start.Add(convertProgress)
	var done, all atomic.Int64
	options := convert.Options{Log: log, Progress: func(p convert.Progress) {
		done.Store(p.Done)
		all.Store(p.All)
		if now := time.Now(); now.After(next) {
			next = now.Add(convertProgress)
			log.Info("converting the database of the original", "narinfos", p.Done, "of", p.All)
		}
	}}
	closeStorage, err := lookIn(ctx, &options, c.Storage)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, closeStorage()) }()
	if c.Mirror != nil {
		// The original has followed it until now, and stored its nars.
		options.Mirrored = true
		options.Settings = func(ctx context.Context, from *original.Database) (map[string]string, error) {
			settings, err := mirror.ConvertedSettings(ctx, from)
			if bytes, ok := options.Storage.(byteStore); err == nil && ok {
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
	return c.whileStarting(ctx, listeners, state, log, func(ctx context.Context) error {
		_, err := convert.InPlace(ctx, c.Database, options)
		return err
	})
}

// beginMirror makes the database of a mirror that has none yet, while the
// listeners are answered.
func (c *serverCommand) beginMirror(ctx context.Context, listeners []net.Listener, log *slog.Logger) error {
	if c.Mirror == nil {
		return nil
	}
	if _, err := os.Stat(c.Database); !errors.Is(err, fs.ErrNotExist) {
		return nil // what else may be wrong with it, opening it will tell
	}
	if c.Storage != "" && !c.StorageReadOnly {
		bytes, err := openBytes(ctx, c.Storage, log)
		if err != nil {
			return err
		}
		if err := errors.Join(mayBegin(ctx, c.Database, bytes, owner.IfEmpty), bytes.Close()); err != nil {
			return err
		}
	}
	beginning := mirror.NewBeginning(c.Database, peer.New(c.Mirror.URL, peer.Self{AllowPrivateRedirects: c.AllowPrivateRedirects}), log)
	state := func() any {
		return struct {
			Status string       `json:"status"`
			Mirror mirrorStatus `json:"mirror"`
		}{mirror.Syncing, mirrorStatus{Status: beginning.Status()}}
	}
	return c.whileStarting(ctx, listeners, state, log, beginning.Run)
}

// migrate brings a database of an older version up to date, while the listeners are
// answered.
func (c *serverCommand) migrate(ctx context.Context, listeners []net.Listener, log *slog.Logger) error {
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
	return c.whileStarting(ctx, listeners, state, log, func(ctx context.Context) error {
		done, err := index.Migrate(ctx, c.Database)
		if err == nil {
			log.Info("migrated the database", "database", c.Database, "from", done.From, "to", done.To, "kept", done.Copy,
				"took", time.Since(start).Round(time.Millisecond).String())
		}
		return err
	})
}
