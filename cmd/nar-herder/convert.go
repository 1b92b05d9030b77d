package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync/atomic"
	"time"

	"nar-herder/mirror"
	"nar-herder/mirror/original"
	"nar-herder/mirror/original/convert"
	"nar-herder/storage/location"
)

type convertCommand struct {
	Storage string `placeholder:"DIR|s3://BUCKET" help:"Directory or s3://BUCKET/PREFIX?… of the stored nars, so that an index knows from the start which of them are there."`

	From string `arg:"" name:"from" help:"A database or dump of the original, or an index."`
	To   string `arg:"" name:"to" help:"The file to make; there must be none of that name."`
}

func (c *convertCommand) Run(ctx context.Context, s *streams) (err error) {
	progress := newProgress(s.err, "converting", "narinfos", 0)
	options := convert.Options{
		Log: slog.New(newLogHandler(s.err, slog.LevelWarn)),
		Progress: func(p convert.Progress) {
			progress.all = p.All
			progress.reach(p.Done)
		},
	}
	if err := validateStorage("--storage", c.Storage); err != nil {
		return err
	}
	closeStorage, err := lookIn(ctx, &options, c.Storage)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, closeStorage()) }()
	result, err := convert.Convert(ctx, c.From, c.To, options)
	progress.end()
	if err != nil {
		return fmt.Errorf("convert: %w", err)
	}
	what := "an index"
	if result.ToOriginal {
		what = "a database of the original Nar Herder"
	}
	resumed := ""
	if result.Resumed {
		resumed = " (gone on from where an earlier run had stopped)"
	}
	_, err = printf(s.out, "%s is %s%s: %s\n", c.To, what, resumed, result)
	return err
}

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
	return c.whileStarting(ctx, listeners, state, log, func(ctx context.Context) error {
		_, err := convert.InPlace(ctx, c.Database, options)
		return err
	})
}

// lookIn has a conversion look for nars in a storage, unless its name is empty.
func lookIn(ctx context.Context, options *convert.Options, store string) (closeStorage func() error, err error) {
	if store == "" {
		return func() error { return nil }, nil
	}
	bytes, err := location.Open(ctx, store, options.Log)
	if err != nil {
		return nil, err
	}
	options.Storage = bytes
	return bytes.Close, nil
}
