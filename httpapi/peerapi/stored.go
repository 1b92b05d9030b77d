package peerapi

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"strings"

	"github.com/valyala/fasthttp"

	"nar-herder/httpapi/respond"
	"nar-herder/narinfo"
	"nar-herder/peer"
	"nar-herder/storage"
)

// ServeInfo answers whether the nar is stored here, with all files of its narinfo, as a client
// may request any of them. It returns false, without an answer, if there is no such item.
func (s *API) ServeInfo(request *fasthttp.RequestCtx, hash narinfo.PathHash) (known bool) {
	if !s.admit(request, 1) {
		return true
	}
	ctx, cancel := context.WithTimeout(s.options.Live, StoredTime)
	defer cancel()
	item, files, err := s.filesThere(ctx, hash)
	stored := err == nil && len(files) == announcedFiles(item) && s.vouches(ctx)
	if errors.Is(err, storage.ErrNotFound) {
		return false
	}
	if err != nil {
		s.options.Faults.Answer(request, "look for a nar", err)
		return true
	}
	header := &request.Response.Header
	header.Set("Cache-Control", "no-store")
	if s.options.Identity != nil {
		header.Set(peer.InstanceHeader, s.options.Identity.Instance())
		if name, err := s.options.Identity.StorageName(ctx); err == nil && name != "" {
			header.Set(peer.StorageHeader, name)
		}
	}
	if stored {
		respond.Text(request, "application/json", `{"stored": true}`)
	} else {
		respond.Text(request, "application/json", `{"stored": false}`)
	}
	return true
}

// announcedFiles returns how many files clients may request.
func announcedFiles(item *storage.Item) int {
	if item.Dropped != 0 {
		if n, err := narinfo.Parse(item.Announced()); err == nil {
			return len(n.Files)
		}
	}
	return len(item.Narinfo.Files)
}

// vouches reports whether other instances may depend on this storage.
func (s *API) vouches(ctx context.Context) bool {
	return s.options.Identity == nil || s.options.Identity.IsOurs(ctx)
}

// filesThere returns an item and its stored files. Other instances delete nars depending on
// the result, so it looks up the bytes, and a withdrawn item is not found.
func (s *API) filesThere(ctx context.Context, hash narinfo.PathHash) (*storage.Item, []peer.StoredFile, error) {
	item, err := s.options.Items.Item(ctx, hash)
	if err != nil {
		return nil, nil, err
	}
	if !item.WithdrawnAt.IsZero() {
		return nil, nil, storage.ErrNotFound
	}
	files, err := s.filesOf(ctx, item)
	if err != nil && HasChanged(s.options.Live, s.options.Items, item, err) {
		return s.filesThere(ctx, hash)
	}
	return item, files, err
}

// filesOf returns the stored files of an item.
func (s *API) filesOf(ctx context.Context, item *storage.Item) ([]peer.StoredFile, error) {
	files := make([]peer.StoredFile, 0, len(item.Narinfo.Files))
	for n, file := range item.Narinfo.Files {
		if item.HasDropped(n) {
			continue // it is about to be deleted
		}
		err := s.lookFor(ctx, item, n)
		if errors.Is(err, storage.ErrNotStored) {
			continue
		}
		if err != nil {
			return nil, err
		}
		files = append(files, peer.StoredFile{URL: file.URL, Size: item.StoredSize(n)})
	}
	return files, nil
}

// ServeStored answers which nars of a list of hashes are stored here.
func (s *API) ServeStored(request *fasthttp.RequestCtx, list string) {
	asked := strings.Split(list, ",")
	if len(asked) > peer.MostAsked {
		respond.Fail(request, fasthttp.StatusBadRequest, "that is too many hashes")
		return
	}
	if !s.admit(request, len(asked)) {
		return
	}
	ctx, cancel := context.WithTimeout(s.options.Live, StoredTime)
	defer cancel()
	reply := peer.StoredReply{Nonce: string(request.QueryArgs().Peek(peer.NonceKey)), Nars: make([]peer.StoredNar, len(asked))}
	if s.options.Identity != nil {
		reply.Instance = s.options.Identity.Instance()
		// Without the name, the client can't be sure and deletes nothing.
		var err error
		reply.Storage, err = s.options.Identity.StorageName(ctx)
		reply.StorageUnknown = err != nil
	}
	if s.options.DependsOn != nil {
		reply.ReliesOn = s.options.DependsOn()
	}
	hashes := make([]narinfo.PathHash, len(asked))
	for i, text := range asked {
		hash, err := narinfo.ParsePathHash(text)
		if err != nil {
			respond.Fail(request, fasthttp.StatusBadRequest, "not a list of hashes")
			return
		}
		hashes[i] = hash
	}
	vouches := s.vouches(ctx)
	items, itemsErr := s.options.Items.ItemsAt(ctx, hashes)
	var faults faults
	s.each(len(asked), func(i int) {
		nar := &reply.Nars[i]
		nar.Hash = asked[i]
		if !vouches || itemsErr == nil && (items[i] == nil || !items[i].WithdrawnAt.IsZero()) {
			return
		}
		var item *storage.Item
		var files []peer.StoredFile
		err := itemsErr
		if err == nil {
			item = items[i]
			files, err = s.filesOf(ctx, item)
		}
		if err != nil {
			// The item may have changed, or another one of the list can't be read.
			item, files, err = s.filesThere(ctx, hashes[i])
		}
		switch {
		case errors.Is(err, storage.ErrNotFound):
		case err != nil:
			faults.add(asked[i], err)
			nar.Fault = true
		case len(files) > 0:
			nar.Stored, nar.NarHash, nar.Files = true, item.Narinfo.NarHash.String(), files
		}
	})
	if faults.count > 0 {
		s.options.Faults.Count.Add(float64(faults.count))
		if s.options.Faults.IsDue("look up nars", faults.err) {
			s.options.Faults.Log.Error("can't look up nars for another instance", "items", faults.count, "item", faults.item, "error", faults.err)
		}
	}
	var body bytes.Buffer
	if err := json.NewEncoder(&body).Encode(reply); err != nil {
		s.options.Faults.Answer(request, "write which nars are stored", err)
		return
	}
	request.Response.Header.Set("Cache-Control", "no-store")
	request.Response.Header.SetContentType("application/json")
	request.Response.SetBody(body.Bytes())
}
