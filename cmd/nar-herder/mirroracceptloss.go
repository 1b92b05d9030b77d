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

// Help is shown below the options.
func (mirrorAcceptLossCommand) Help() string {
	return "A mirror stops following a source that has lost more than a tenth of its items, removes more than that within an hour, has gone back in time, as after a restore, or dates changes ahead of the mirror's clock. Its log, /health and its metrics say so. This command makes it follow the source for the next hour regardless. --database is the mirror's database; its server need not be stopped."
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
	fmt.Fprintln(s.out, "the mirror follows its source for the next hour, regardless of losses")
	return nil
}
