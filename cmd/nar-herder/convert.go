package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"nar-herder/mirror/original/convert"
	"nar-herder/storage/location"
)

type convertCommand struct {
	Storage string `group:"storage" placeholder:"DIR|s3://BUCKET" help:"Directory or s3://BUCKET/PREFIX?… of the stored nars, to record in the index which of them exist."`

	From string `arg:"" name:"from" help:"Database or dump of the original, or an index."`
	To   string `arg:"" name:"to" help:"File to write. It must not exist."`
}

func (c *convertCommand) Run(ctx context.Context, s *streams) (err error) {
	progress := newProgress(s.err, "converting", "narinfos", 0)
	options := convert.Options{
		Log: slog.New(newLogHandler(s.err, slog.LevelWarn)),
		Progress: func(p convert.Progress) {
			progress.expect(p.All)
			progress.reach(p.Done)
		},
	}
	if err := validateStorage("--storage", c.Storage); err != nil {
		return err
	}
	closeStorage, err := openForConversion(ctx, &options, c.Storage)
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
		resumed = " (resumed an interrupted run)"
	}
	_, err = printf(s.out, "%s is %s%s: %s\n", c.To, what, resumed, result)
	return err
}

// openForConversion makes a conversion look for nars in the storage, unless the name is empty.
func openForConversion(ctx context.Context, options *convert.Options, store string) (closeStorage func() error, err error) {
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
