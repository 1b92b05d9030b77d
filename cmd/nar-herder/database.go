package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"nar-herder/httpapi"
	"nar-herder/storage"
	"nar-herder/storage/dbspace"
	"nar-herder/storage/directory"
	"nar-herder/storage/index"
	"nar-herder/storage/s3"
	"nar-herder/storage/tiered"
)

// databaseOption is what all commands that use the index have.
type databaseOption struct {
	Database string `default:"/var/lib/nar-herder/nar_herder.db" placeholder:"FILE" help:"The SQLite index (default: ${default})."`
}

// opened is an index with its storage, to be closed together.
type opened struct {
	*storage.Storage
	index *index.Index
	bytes byteStore      // nil without a storage
	cache *tiered.Tiered // in front of bytes; nil without one
}

// byteStore is a store that is to be closed.
type byteStore interface {
	storage.ByteStore
	io.Closer
}

// isBucket says whether a storage's name is that of a bucket.
func isBucket(store string) bool { return strings.HasPrefix(store, "s3:") }

// localDirectory is where a storage lies on this machine, or "".
func localDirectory(store string) string {
	if isBucket(store) {
		return ""
	}
	return store
}

// validateStorage refuses the URL of a bucket that can't be opened, whatever the server
// says. The option is named in the error.
func validateStorage(option, store string) error {
	if !isBucket(store) {
		return nil
	}
	if err := s3.Validate(store); err != nil {
		return usagef("%s: %w", option, err)
	}
	return nil
}

// openBytes opens a storage by its name, which is valid.
func openBytes(ctx context.Context, store string, log *slog.Logger) (byteStore, error) {
	// Not "return directory.Open(store)": a nil *Directory is no nil byteStore.
	if isBucket(store) {
		bucket, err := s3.Open(ctx, store, s3.Options{Log: log})
		if err != nil {
			return nil, err
		}
		return bucket, nil
	}
	bytes, err := directory.Open(store)
	if err != nil {
		return nil, err
	}
	return bytes, nil
}

// newDatabaseOption is for commands that make the index where there is none.
type newDatabaseOption struct {
	NewDatabase bool `argumentsonly:"" help:"Begin a new index where there is none, although the storage was claimed by another database."`
}

// beginWait is how long the storage may take to say which instance it belongs to.
const beginWait = 10 * time.Second

// mayBegin refuses to make an index where there is none, when another database
// has claimed this storage: usually its file system isn't mounted, and clients would be told
// that there are no items. It is nil where there is an index.
func (c *newDatabaseOption) mayBegin(ctx context.Context, database string, bytes storage.ByteStore) error {
	if c == nil || c.NewDatabase || bytes == nil {
		return nil
	}
	if info, err := os.Stat(database); err == nil && info.Size() > 0 || err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil // what may be wrong with it, opening it will tell
	}
	ctx, cancel := context.WithTimeout(ctx, beginWait)
	defer cancel()
	owner, err := storage.ReadNote(ctx, bytes, storage.OwnerName)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("database %s is missing or empty, and whether another belongs to storage %s can't be found out: %w: try again, or begin a new index with --new-database", database, bytes, err)
	}
	return fmt.Errorf("database %s is missing or empty, but storage %s was claimed by another database, that of instance %s: is the file system of the database mounted? Name that database with --database, or restore it; if it is gone for good, begin a new index with --new-database, and see 'nar-herder claim-storage --help'", database, bytes, owner)
}

// open opens the index, and the storage unless its name is empty. The index must exist.
func open(ctx context.Context, database, store string, options index.Options, log *slog.Logger) (*opened, error) {
	return openOrBegin(ctx, database, store, nil, options, nil, log)
}

// openOrBegin is open. With [index.Create], the index is made where there is none, as far
// as begin lets it be. The server alone may use the cache of the storage; nil for none.
func openOrBegin(ctx context.Context, database, store string, begin *newDatabaseOption, options index.Options, cache *tiered.Options, log *slog.Logger) (_ *opened, err error) {
	if err := validateStorage("--storage", store); err != nil {
		return nil, err
	}
	o := new(opened)
	var bytes storage.ByteStore // a nil byteStore in it would be none
	if store != "" {
		if o.bytes, err = openBytes(ctx, store, log); err != nil {
			return nil, err
		}
		bytes = o.bytes
	}
	if cache != nil {
		if o.cache, err = tiered.New(bytes, *cache); err != nil {
			return nil, errors.Join(fmt.Errorf("--storage-cache: %w", err), o.closeBytes())
		}
		bytes = o.cache
	}
	if options.Access == index.Create {
		if err := begin.mayBegin(ctx, database, bytes); err != nil {
			return nil, errors.Join(err, o.closeBytes())
		}
	}
	if o.index, err = index.Open(ctx, database, options); err != nil {
		return nil, errors.Join(err, o.closeBytes())
	}
	o.Storage = storage.New(o.index, bytes, storage.Options{Log: log})
	if err := o.Remember(ctx); err != nil {
		return nil, errors.Join(err, o.close())
	}
	return o, nil
}

// damageShown is for how long the health warns of damage in the index after it was met.
const damageShown = time.Hour

// damageWarnings are about damage in the index.
func damageWarnings(x *index.Index) []string {
	count, last := x.Damages()
	if count == 0 || time.Since(last) > damageShown {
		return nil
	}
	return []string{fmt.Sprintf("the database is damaged: requests for some narinfos fail, the last at %s: run 'nar-herder check'", last.UTC().Format(time.RFC3339))}
}

// damageMetric counts damage in the index.
func damageMetric(x *index.Index) prometheus.Collector {
	return prometheus.NewCounterFunc(prometheus.CounterOpts{
		Name: "narherder_index_damaged_texts_total", Help: "Times that a narinfo was not in the index as it was written, and was not given.",
	}, func() float64 {
		count, _ := x.Damages()
		return float64(count)
	})
}

// watchDatabase makes what watches the file system of the database, and adds its
// warnings, and those of damage, to the health.
func watchDatabase(store *opened, options *httpapi.Options, log *slog.Logger) *dbspace.Watch {
	watch := dbspace.New(store.index, nil, log)
	addWarnings(options, watch.Warnings)
	addWarnings(options, func() []string { return damageWarnings(store.index) })
	return watch
}

// addWarnings puts more warnings into the health, before those it has.
func addWarnings(options *httpapi.Options, more func() []string) {
	others := options.Warnings
	options.Warnings = func() []string {
		warnings := more()
		if others != nil {
			warnings = append(warnings, others()...)
		}
		return warnings
	}
}

// refuseFrontEnd is an error for what needs to know which nars are stored: a front
// end's index does not say.
func (o *opened) refuseFrontEnd(instead string) error {
	if !o.IsFrontEnd() {
		return nil
	}
	return fmt.Errorf("this is the index of a front end, and storage %s that of the instance it mirrors: run this with that one's database; %s", o.name(), instead)
}

// name is the storage's name in messages, without what only opens it; "" for none.
func (o *opened) name() string {
	if o.bytes == nil {
		return ""
	}
	return o.bytes.String()
}

func (o *opened) close() error {
	return errors.Join(o.index.Close(), o.closeBytes())
}

func (o *opened) closeBytes() (err error) {
	if o.cache != nil {
		err = o.cache.Close()
	}
	if o.bytes != nil {
		err = errors.Join(err, o.bytes.Close())
	}
	return err
}
