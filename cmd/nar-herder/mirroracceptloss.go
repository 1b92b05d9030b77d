package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"nar-herder/mirror"
)

type mirrorAcceptLossCommand struct {
	databaseOption `embed:""`
}

// Help is what else there is to say.
func (mirrorAcceptLossCommand) Help() string {
	return "A mirror does not follow a source that has shrunk by more than a tenth, removes more than that within an hour, has gone back in time, as after a backup was put back, or dates changes ahead of the mirror's clock: it says so in its log, at /health and in its metrics. This has it follow the source for the next hour all the same. --database is that of the mirror, whose server runs on."
}

func (c *mirrorAcceptLossCommand) Run(ctx context.Context, s *streams) (err error) {
	store, err := openExisting(ctx, c.Database, "", nil)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, store.close()) }()
	if err := mirror.Accept(ctx, store.index, time.Now()); err != nil {
		return err
	}
	fmt.Fprintln(s.out, "the source is followed for the next hour, whatever it has lost")
	return nil
}
