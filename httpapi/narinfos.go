package httpapi

import (
	"context"
	"errors"
	"time"

	"github.com/valyala/fasthttp"

	"nar-herder/httpapi/engine"
	"nar-herder/httpapi/respond"
	"nar-herder/narinfo"
	"nar-herder/storage"
	"nar-herder/storage/index"
)

// serveNarinfo answers with the narinfo.
func (s *Server) serveNarinfo(ctx *fasthttp.RequestCtx, hash narinfo.PathHash) {
	found, ok, generation := s.answers.Get(hash)
	if !ok {
		engine.Enter(ctx, s.pool)
		var err error
		found, err = s.answer(s.live, hash)
		if errors.Is(err, storage.ErrNotFound) {
			s.unknown(ctx)
			if errors.Is(err, storage.ErrLost) && s.cacheControls.lost != "" {
				ctx.Response.Header.Set(fasthttp.HeaderCacheControl, s.cacheControls.lost)
			}
			return
		}
		if err != nil {
			s.fault(ctx, "look up a narinfo", err)
			return
		}
		s.answers.Put(hash, found, generation)
	}
	ctx.Response.Header.SetContentType("application/x-nix-narinfo")
	if found.cacheControl != "" {
		ctx.Response.Header.Set("Cache-Control", found.cacheControl)
	}
	ctx.Response.SetBodyRaw(found.body) // which is never modified
}

// madeAnswer is a prepared answer for a narinfo.
type madeAnswer struct {
	body         []byte
	cacheControl string
}

// answer makes the answer for an item's narinfo.
func (s *Server) answer(ctx context.Context, hash narinfo.PathHash) (madeAnswer, error) {
	if s.options.Cached == nil {
		body, err := s.items.Text(ctx, hash)
		return madeAnswer{body, s.cacheControls.narinfo}, err
	}
	body, types, err := s.options.Cached.Text(ctx, hash)
	if len(types) == 0 {
		return madeAnswer{body, s.cacheControls.narinfo}, err
	}
	return madeAnswer{body, maxAge(s.options.Cached.TTL(types))}, err
}

// Forget drops an item that has changed from memory.
func (s *Server) Forget(hash narinfo.PathHash) {
	s.nars.Forget(hash)
	s.answers.Forget(hash)
}

// unknown answers for an item that is certainly not in the index. The answer is not kept in
// memory, so that an import is visible at once.
func (s *Server) unknown(ctx *fasthttp.RequestCtx) {
	respond.NotFound(ctx, "there is no narinfo for that hash")
	s.setMissingCacheControl(ctx)
}

// Changes reports changes in the index, as an [index.Watcher] does.
type Changes interface {
	Poll() (changes []index.Change, complete bool, err error)
}

// followInterval is how often the index is polled for changes by other processes.
const followInterval = 50 * time.Millisecond

// Follow drops outdated answers from memory until the context ends.
func (s *Server) Follow(ctx context.Context, changes Changes) {
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
				s.log.Error("can't tell which answers are out of date; keeping none in memory until this works again", "error", err)
			}
			broken = true
			s.answers.Suspend()
			s.nars.Suspend()
			continue
		}
		if broken {
			broken = false
			s.log.Info("keeping answers in memory again")
			s.answers.Resume()
			s.nars.Resume()
		}
		if !complete {
			s.answers.ForgetAll()
			s.nars.ForgetAll()
		}
		if !complete || len(news) > 0 {
			s.peers.Notify()
		}
		for _, change := range news {
			s.nars.Forget(change.Hash)
			if change.Kind != index.StorageChanged {
				s.answers.Forget(change.Hash)
			}
		}
	}
}
