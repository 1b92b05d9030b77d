package removal

import (
	"context"
	"encoding/json"
	"fmt"
	"net/url"
	"slices"
	"strings"

	"nar-herder/peer"
	"nar-herder/storage/index"
)

// reliedSetting has the names of instances that nars were removed for, as [peer.Name]
// makes them. They go on being asked for those when no criterion names them any more.
const reliedSetting = "removal_relied_on"

// ReliedOn returns the instances that nars were removed for, without users and
// passwords: those must be given again where they are needed. Earlier versions have
// stored them; ReliedOn erases them.
func ReliedOn(ctx context.Context, x *index.Index) (urls []*url.URL, err error) {
	text, err := x.Setting(ctx, reliedSetting)
	if err != nil || text == "" {
		return nil, err
	}
	var names []string
	if err := json.Unmarshal([]byte(text), &names); err != nil {
		return nil, fmt.Errorf("the instances that nars were removed for, in the database: %w", err)
	}
	var public []string
	for _, name := range names {
		u, err := peer.ParseURL(name)
		if err != nil {
			return nil, fmt.Errorf("an instance that nars were removed for, in the database: %w", err)
		}
		u.User = nil
		if name := peer.Name(u); !slices.Contains(public, name) {
			urls, public = append(urls, u), append(public, name)
		}
	}
	if slices.ContainsFunc(names, func(name string) bool { return strings.Contains(name, "@") }) {
		text, err := json.Marshal(public)
		if err == nil {
			err = x.EraseSetting(ctx, reliedSetting, string(text))
		}
		if err != nil {
			return nil, fmt.Errorf("remove a password from the database: %w", err)
		}
	}
	return urls, nil
}

// relyOn notes the instances that vouch for nars which are about to go.
func (r *Remover) relyOn(ctx context.Context, going []decided) error {
	r.relying.Lock()
	defer r.relying.Unlock()
	var news []string
	for _, d := range going {
		for _, u := range d.by.storedOn {
			if name := peer.Name(u); !r.reliedOn[name] && !slices.Contains(news, name) {
				news = append(news, name)
			}
		}
	}
	if len(news) == 0 {
		return nil
	}
	err := r.index.Reclaim(ctx, func(tx *index.Tx) error {
		text, err := tx.Setting(reliedSetting)
		if err != nil {
			return err
		}
		var names []string
		if text != "" {
			if err := json.Unmarshal([]byte(text), &names); err != nil {
				return fmt.Errorf("the instances that nars were removed for, in the database: %w", err)
			}
		}
		for _, name := range news {
			if !slices.Contains(names, name) {
				names = append(names, name)
			}
		}
		all, err := json.Marshal(names)
		if err != nil {
			return err
		}
		return tx.SetSetting(reliedSetting, string(all))
	})
	if err != nil {
		return err
	}
	for _, name := range news {
		r.reliedOn[name] = true
	}
	return nil
}
