package convert

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"nar-herder/mirror/original"
	"nar-herder/storage/index"
)

// stateSetting is the key of a conversion's state. It stays in the index as a note of its
// origin.
const stateSetting = "converted"

// state is the state of a conversion, written in the transaction of each step.
type state struct {
	// Source identifies the converted file and its version.
	Source string
	// Read narinfos were read, up to the row Last; then changes up to the row
	// LastChange.
	Read, Last, LastChange int64
	// ItemsDone says that the narinfos are all there, and Complete that all is.
	ItemsDone, Complete bool
	Result              Result
}

func (s *state) save(tx *index.Tx) error {
	text, err := json.Marshal(s)
	if err != nil {
		return err
	}
	return tx.SetSetting(stateSetting, string(text))
}

// load reads the state of an index; nil if it has none.
func load(ctx context.Context, x *index.Index) (*state, error) {
	text, err := x.Setting(ctx, stateSetting)
	if err != nil || text == "" {
		return nil, err
	}
	s := new(state)
	if err := json.Unmarshal([]byte(text), s); err != nil {
		return nil, fmt.Errorf("how far the conversion %s has come: %w", x.Path(), err)
	}
	return s, nil
}

// fingerprint identifies a file and its version. No other process may have it open, and it has
// no write-ahead log.
func fingerprint(info fs.FileInfo) string {
	return fmt.Sprintf("%d bytes of %d", info.Size(), info.ModTime().UnixNano())
}

// begin opens the unfinished index of an earlier run, or creates it.
func begin(ctx context.Context, source *original.Database, info fs.FileInfo, path string) (*index.Index, *state, error) {
	fresh := func() (*index.Index, *state, error) {
		x, err := index.Open(ctx, path, index.Options{Migrate: true, WriterCache: writerCache, Bulk: true})
		if err != nil {
			return nil, nil, err
		}
		s := &state{Source: fingerprint(info), Last: original.FromStart, LastChange: original.FromStart}
		return x, s, nil
	}
	x, s, err := fresh()
	if err != nil {
		return nil, nil, err
	}
	found, err := load(ctx, x)
	if err == nil && found != nil {
		var same bool
		if same, err = sameSource(ctx, source, found, s.Source); err == nil && same {
			found.Result.Resumed = true
			return x, found, nil
		}
	}
	if err == nil {
		var totals index.Totals
		totals, err = x.Totals(ctx)
		if err == nil && found == nil && totals.Items == 0 {
			return x, s, nil
		}
		if err == nil && found == nil {
			err = fmt.Errorf("%s is not an unfinished conversion, but an index with %d narinfos: move it away", path, totals.Items)
		}
	}
	if closeErr := x.Close(); err != nil || closeErr != nil {
		return nil, nil, errors.Join(err, closeErr)
	}
	// It is of another file, or of another version.
	if err := remove(path); err != nil {
		return nil, nil, err
	}
	return fresh()
}

// sameSource reports whether the source still has what was read before.
func sameSource(ctx context.Context, source *original.Database, found *state, now string) (bool, error) {
	if found.Source != now {
		return false, nil
	}
	count, err := source.CountUpTo(ctx, found.Last)
	return count == found.Read, err
}

// isFinished reports whether there is a finished conversion under the name.
func isFinished(ctx context.Context, path string) (finished bool, err error) {
	if _, err := os.Stat(path); err != nil {
		return false, nil
	}
	x, err := index.Open(ctx, path, index.Options{Access: index.Write, Migrate: true})
	if err != nil {
		return false, err
	}
	s, err := load(ctx, x)
	return s != nil && s.Complete, errors.Join(err, x.Close())
}
