package peer

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"nar-herder/narinfo"
	"nar-herder/storage"
)

// askPlainly sends the original's query for each item, and fetches the narinfo to learn which
// nar the answer is about.
func (p *Peer) askPlainly(ctx context.Context, items []*storage.Item, storageName string) ([]Verdict, Introduction, error) {
	verdicts := make([]Verdict, len(items))
	var mu sync.Mutex
	who, answered := "", false
	asking, ctx := errgroup.WithContext(ctx)
	asking.SetLimit(plainAtOnce)
	for i, item := range items {
		asking.Go(func() error {
			verdict, from, err := p.askOne(ctx, item, storageName)
			if verdicts[i] = verdict; err != nil || !verdict.Stored {
				return err
			}
			mu.Lock()
			defer mu.Unlock()
			if answered && from != who {
				return fmt.Errorf("%w: one item is answered by instance %q, another by %q", ErrAnswer, who, from)
			}
			who, answered = from, true
			return nil
		})
	}
	if err := asking.Wait(); err != nil {
		return nil, Introduction{}, err
	}
	return verdicts, Introduction{Instance: who}, nil
}

// askOne queries one item. It also returns the name of the instance that answers; "" for an
// original.
func (p *Peer) askOne(ctx context.Context, item *storage.Item, storageName string) (verdict Verdict, instance string, err error) {
	path := "/" + item.Hash.String() + ".narinfo"
	body, _, err := p.get(ctx, path, narinfo.MaxSize)
	if errors.Is(err, errNotKnown) {
		return Verdict{Reason: "not known there"}, "", nil
	} else if err != nil {
		return Verdict{}, "", err
	}
	n, err := narinfo.Parse(body)
	if err != nil {
		return Verdict{}, "", fmt.Errorf("%w: %w", ErrAnswer, err)
	}
	if n.StorePath.Hash != item.Hash {
		return Verdict{}, "", fmt.Errorf("%w: it is about %s, not about %s", ErrAnswer, n.StorePath.Hash, item.Hash)
	}
	// This comes last because it is the answer that counts. The random parameter is for
	// proxies, which may ignore Cache-Control and not admit to a cached answer: nginx does
	// both. The original ignores it; a server that doesn't answers 404, which means no.
	asked := p.now()
	body, header, err := p.get(ctx, path+"/info?now="+rand.Text(), mostAnswer)
	if errors.Is(err, errNotKnown) {
		return Verdict{Reason: "not known there"}, "", nil
	} else if err != nil {
		return Verdict{}, "", err
	}
	var reply struct {
		Stored *bool `json:"stored"`
	}
	if err := json.Unmarshal(body, &reply); err != nil {
		return Verdict{}, "", fmt.Errorf("%w: %w", ErrAnswer, err)
	}
	if reply.Stored == nil {
		return Verdict{}, "", fmt.Errorf("%w: it does not say whether %s is stored", ErrAnswer, item.Hash)
	}
	// Without a nonce, an old answer must be noticed in other ways.
	if age := header.Get("Age"); age != "" && age != "0" {
		return Verdict{}, "", fmt.Errorf("%w: it comes from a cache, which has had it for %s seconds", ErrAnswer, age)
	}
	if date, err := http.ParseTime(header.Get("Date")); err == nil && asked.Sub(date) > mostSkew {
		return Verdict{}, "", fmt.Errorf("%w: it is of %s, from before the question at %s: it comes from a cache, which must not keep this, or one of the clocks is wrong", ErrAnswer, date.Format(time.RFC3339), asked.UTC().Format(time.RFC3339))
	}
	// The original has no names, and can't share this program's storage.
	if instance = header.Get(InstanceHeader); instance != "" {
		if !isName(instance) {
			return Verdict{}, "", fmt.Errorf("%w: %.99q is not the name of an instance", ErrAnswer, instance)
		}
		if err := p.isOther(instance, header.Get(StorageHeader), storageName); err != nil {
			return Verdict{}, "", err
		}
	}
	nar := StoredNar{Stored: *reply.Stored, NarHash: n.NarHash.String()}
	for _, file := range n.Files {
		nar.Files = append(nar.Files, StoredFile{file.URL, file.Size})
	}
	return judge(item, nar, true), instance, nil
}
