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

	"nar-herder/narinfo"
	"nar-herder/storage"
)

// askPlainly asks the original's question for each item, and for the narinfo,
// to know which nar the answer is about.
func (p *Peer) askPlainly(ctx context.Context, items []*storage.Item, storageName string) (verdicts []Verdict, who Introduction, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	verdicts = make([]Verdict, len(items))
	var mu sync.Mutex
	answered := false
	work := make(chan int)
	var asking sync.WaitGroup
	for range plainAtOnce {
		asking.Go(func() {
			for i := range work {
				verdict, from, err := p.askOne(ctx, items[i], storageName)
				if err != nil {
					cancel(err)
					return
				}
				verdicts[i] = verdict
				if !verdict.Stored {
					continue
				}
				mu.Lock()
				if answered && from.Instance != who.Instance {
					cancel(fmt.Errorf("%w: one item is answered by instance %q, another by %q", ErrAnswer, who.Instance, from.Instance))
				}
				who, answered = from, true
				mu.Unlock()
			}
		})
	}
feed:
	for i := range items {
		select {
		case work <- i:
		case <-ctx.Done():
			break feed
		}
	}
	close(work)
	asking.Wait()
	if err := context.Cause(ctx); err != nil {
		return nil, who, err
	}
	return verdicts, who, nil
}

func (p *Peer) askOne(ctx context.Context, item *storage.Item, storageName string) (verdict Verdict, who Introduction, err error) {
	path := "/" + item.Hash.String() + ".narinfo"
	body, _, err := p.get(ctx, path, narinfo.MaxSize)
	if errors.Is(err, errNotKnown) {
		return Verdict{Reason: "not known there"}, who, nil
	} else if err != nil {
		return Verdict{}, who, err
	}
	n, err := narinfo.Parse(body)
	if err != nil {
		return Verdict{}, who, fmt.Errorf("%w: %w", ErrAnswer, err)
	}
	if n.StorePath.Hash != item.Hash {
		return Verdict{}, who, fmt.Errorf("%w: it is about %s where %s was asked for", ErrAnswer, n.StorePath.Hash, item.Hash)
	}
	// Last, as it is the answer that counts. What is random in the question is
	// for proxies, not all of which heed Cache-Control or own up to an answer of
	// before: nginx does neither. The original looks at the path alone; where
	// something does not, a 404 is a no.
	asked := p.now()
	body, header, err := p.get(ctx, path+"/info?now="+rand.Text(), mostAnswer)
	if errors.Is(err, errNotKnown) {
		return Verdict{Reason: "not known there"}, who, nil
	} else if err != nil {
		return Verdict{}, who, err
	}
	var reply struct {
		Stored *bool `json:"stored"`
	}
	if err := json.Unmarshal(body, &reply); err != nil {
		return Verdict{}, who, fmt.Errorf("%w: %w", ErrAnswer, err)
	}
	if reply.Stored == nil {
		return Verdict{}, who, fmt.Errorf("%w: it does not say whether %s is stored", ErrAnswer, item.Hash)
	}
	// It has no nonce: what was true once is not surely so now.
	if age := header.Get("Age"); age != "" && age != "0" {
		return Verdict{}, who, fmt.Errorf("%w: it comes from a cache, which has had it for %s seconds", ErrAnswer, age)
	}
	if date, err := http.ParseTime(header.Get("Date")); err == nil && asked.Sub(date) > mostSkew {
		return Verdict{}, who, fmt.Errorf("%w: it is of %s, from before the question at %s: it comes from a cache, which must not keep this, or one of the clocks is wrong", ErrAnswer, date.Format(time.RFC3339), asked.UTC().Format(time.RFC3339))
	}
	// The original has no names, and can't have this program's storage.
	if instance := header.Get(InstanceHeader); instance != "" {
		if !isName(instance) {
			return Verdict{}, who, fmt.Errorf("%w: %.99q is not the name of an instance", ErrAnswer, instance)
		}
		if err := p.isOther(instance, header.Get(StorageHeader), storageName); err != nil {
			return Verdict{}, who, err
		}
		who.Instance, who.Storage = instance, header.Get(StorageHeader)
	}
	nar := StoredNar{Stored: *reply.Stored, NarHash: n.NarHash.String()}
	for _, file := range n.Files {
		nar.Files = append(nar.Files, StoredFile{file.URL, file.Size})
	}
	return judge(item, nar, true), who, nil
}
