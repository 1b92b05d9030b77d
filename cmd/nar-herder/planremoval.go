package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"log/slog"

	"nar-herder/peer"
	"nar-herder/removal"
	"nar-herder/removal/criteria"
)

type planRemovalCommand struct {
	databaseOption  `embed:""`
	removalOptions  `embed:""`
	redirectsOption `embed:""`
}

// Help is shown below the options.
func (planRemovalCommand) Help() string {
	return `Use the same options as for run-server, preferably in the file that --config names. The command changes nothing. Like the server, it asks the instances that stored-on names. It prints the items in the order in which they would be removed now, with their size and the criterion that they meet, until the limit is kept. The nar of a withdrawn item is deleted when no client can still have its narinfo. For other items, the narinfo stays, and the other instance's nar is served.

The plan does not include requests of the last seconds, and a server removes nothing by stored-on in its first ten minutes. With "unreferenced", items appear after all items that refer to them. The exit status is 2 if an instance did not answer.`
}

func (c *planRemovalCommand) Run(ctx context.Context, s *streams) (err error) {
	if c.Storage == "" {
		return usagef("plan-removal: no --storage is given")
	}
	if c.StorageLimit == noLimit && c.StorageMinimumFreeSpace == noLimit {
		return usagef("plan-removal: neither --storage-limit nor --storage-minimum-free-space is given, so a server removes nothing")
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
	wanted := c.criteria()
	var peers peer.Peers
	for _, u := range criteria.Instances(wanted) {
		peers = append(peers, peer.New(u, self))
	}
	options := c.removal(wanted, peers)
	options.Log = log
	out := bufio.NewWriter(s.out)
	var removed, withdrawn int
	var bytes int64
	wait := newWait(s.err, "planning the removal")
	defer wait.end()
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
		printf(out, "no more can be removed, although the limit is not kept: %s\n", reason)
	}
	if err := out.Flush(); err != nil {
		return err
	}
	if reason == removal.Unasked {
		return statusUnknown
	}
	return nil
}
