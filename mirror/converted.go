package mirror

import (
	"context"
	"encoding/json"
	"errors"
	"time"

	"nar-herder/mirror/original"
)

// ConvertedSettings returns the settings of an index that is made of a database of
// the original which followed a source: up to where it did, by the times of changes,
// as its log has them. So the index follows on without the source's dump, as long
// as the source has the newest of them. There are none where the log is empty, or has no times that make sense.
func ConvertedSettings(ctx context.Context, from *original.Database) (map[string]string, error) {
	// Not when items were added, which may be times of here.
	newest, err := from.NewestChange(ctx)
	if err != nil || newest.IsZero() {
		return nil, err
	}
	at, err := placeBehind(ctx, from, newest, time.Now())
	if errors.Is(err, errManySeen) || err == nil && at.isZero() {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	text, err := json.Marshal(at)
	if err != nil {
		return nil, err
	}
	return map[string]string{placeSetting: string(text)}, nil
}
