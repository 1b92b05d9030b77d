package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"log/slog"

	"nar-herder/peer"
	"nar-herder/removal"
)

type planRemovalCommand struct {
	databaseOption  `embed:""`
	removalOptions  `embed:""`
	redirectsOption `embed:""`
}

// Help is shown below the options.
func (planRemovalCommand) Help() string {
	return `Give the options of run-server, best in the file that --config names. This asks the instances that stored-on names, as the server does, and changes nothing: it shows the items in the order in which they would be removed now, with their bytes and the criterion that is the reason, until the limit would be kept. Of items that are withdrawn, the nar is deleted when no client can hold the narinfo any more; of the others, the narinfo is served as before, with the nar of the other instance.

The plan doesn't know which nars clients of the server have asked for in the last seconds, and a server removes nothing by stored-on in its first ten minutes. An item that may only go when nothing refers to it any more is shown once those that do are gone. The exit status is 2 where an instance could not be asked.`
}

func (c *planRemovalCommand) Run(ctx context.Context, s *streams) (err error) {
	if c.Storage == "" {
		return usagef("plan-removal: no --storage is given")
	}
	if c.StorageLimit == noLimit && c.StorageMinimumFreeSpace == noLimit {
		return usagef("plan-removal: neither --storage-limit nor --storage-minimum-free-space is given: a server removes nothing then")
	}
	log := slog.New(newLogHandler(s.err, slog.LevelWarn))
	store, err := openForReading(ctx, c.Database, c.Storage, log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, store.close()) }()
	if err := store.MayDelete(ctx); err != nil {
		return fmt.Errorf("plan-removal: a server with this database removes nothing: %w", err)
	}
	self := peer.Self{Instance: store.Instance(), Storage: store.StorageName, AllowPrivateRedirects: c.AllowPrivateRedirects}
	criteria := c.criteria()
	var peers peer.Peers
	for _, u := range removal.Instances(criteria) {
		peers = append(peers, peer.New(u, self))
	}
	options := c.removal(criteria, peers)
	options.Log = log
	out := bufio.NewWriter(s.out)
	var removed, withdrawn int
	var bytes int64
	reason, err := removal.New(store.Storage, options).Plan(ctx, func(p removal.Planned) {
		verb := "remove"
		if p.Withdraw {
			verb = "withdraw"
			withdrawn++
		} else {
			removed++
		}
		bytes += p.Bytes
		printf(out, "would %s %s, %s: %s\n", verb, p.StorePath, byteCount(p.Bytes), p.Criterion)
	})
	if err != nil {
		return errors.Join(err, out.Flush())
	}
	printf(out, "%s would be removed and %s withdrawn, %s of nars\n", countOf(removed, "nar"), countOf(withdrawn, "item"), byteCount(bytes))
	if reason != "" {
		printf(out, "no more would be, although the limit is not kept: %s\n", reason)
	}
	if err := out.Flush(); err != nil {
		return err
	}
	if reason == removal.Unasked {
		return statusUnknown
	}
	return nil
}
