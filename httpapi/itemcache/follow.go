package itemcache

import (
	"context"
	"log/slog"
	"time"

	"nar-herder/storage/index"
)

// Changes reports changes in the index, as an [index.Watcher] does.
type Changes interface {
	Poll() (changes []index.Change, complete bool, err error)
}

// followInterval is how often the index is polled for changes by other processes.
const followInterval = 50 * time.Millisecond

// Follow drops outdated values from caches until the context ends. It calls forget for each
// change, and notify after changes.
func Follow(ctx context.Context, changes Changes, log *slog.Logger, forget func(*index.Change), notify func(), caches ...interface {
	ForgetAll()
	Suspend()
	Resume()
}) {
	ticker := time.NewTicker(followInterval)
	defer ticker.Stop()
	broken := false
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		news, complete, err := changes.Poll()
		if err != nil {
			if !broken {
				log.Warn("can't tell which answers are out of date; keeping none in memory until this works again", "error", err)
			}
			broken = true
			for _, cache := range caches {
				cache.Suspend()
			}
			continue
		}
		if broken {
			broken = false
			log.Info("keeping answers in memory again")
			for _, cache := range caches {
				cache.Resume()
			}
		}
		if !complete {
			for _, cache := range caches {
				cache.ForgetAll()
			}
		}
		for i := range news {
			forget(&news[i])
		}
		if !complete || len(news) > 0 {
			notify()
		}
	}
}
