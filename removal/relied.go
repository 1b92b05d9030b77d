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

// relied reads the setting.
func relied(ctx context.Context, x *index.Index) (names []string, err error) {
	text, err := x.Setting(ctx, reliedSetting)
	if err != nil || text == "" {
		return nil, err
	}
	if err := json.Unmarshal([]byte(text), &names); err != nil {
		return nil, fmt.Errorf("the instances that nars were removed for, in the database: %w", err)
	}
	return names, nil
}

// ReliedOn returns the instances that nars were removed for, without users and
// passwords: those must be given again where they are needed. Earlier versions have
// stored them; ReliedOn erases them.
func ReliedOn(ctx context.Context, x *index.Index) (urls []*url.URL, err error) {
	names, err := relied(ctx, x)
	if err != nil {
		return nil, err
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
	names, err := relied(ctx, r.index)
	if err != nil {
		return err
	}
	before := len(names)
	for _, d := range going {
		for _, u := range d.by.storedOn {
			if name := peer.Name(u); !slices.Contains(names, name) {
				names = append(names, name)
			}
		}
	}
	if len(names) == before {
		return nil
	}
	text, err := json.Marshal(names)
	if err != nil {
		return err
	}
	return r.index.Reclaim(ctx, func(tx *index.Tx) error { return tx.SetSetting(reliedSetting, string(text)) })
}
