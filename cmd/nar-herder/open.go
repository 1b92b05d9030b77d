package main

import (
	"context"
	"log/slog"

	"nar-herder/storage/index"
)

// openExisting is open for commands that need an existing index.
func openExisting(ctx context.Context, database, store string, log *slog.Logger) (*opened, error) {
	return open(ctx, database, store, opening{Options: index.Options{Access: index.Write}}, log)
}

// openForReading is openExisting for commands that only read the index. They need no
// permission to write, and don't disturb a server of any version.
func openForReading(ctx context.Context, database, store string, log *slog.Logger) (*opened, error) {
	return open(ctx, database, store, opening{Options: index.Options{Access: index.Read}}, log)
}
