package main

import (
	"context"
	"log/slog"

	"nar-herder/storage/index"
)

// openExisting is open for what makes no sense with a new index.
func openExisting(ctx context.Context, database, store string, log *slog.Logger) (*opened, error) {
	return open(ctx, database, store, opening{Options: index.Options{Access: index.Write}}, log)
}

// openForReading is openExisting for commands that change nothing in the index. They
// need no permission to write, and don't disturb a server, whatever its version.
func openForReading(ctx context.Context, database, store string, log *slog.Logger) (*opened, error) {
	return open(ctx, database, store, opening{Options: index.Options{Access: index.Read}}, log)
}
