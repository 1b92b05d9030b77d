package dependence

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

// setting is the key of the instances that nars were removed for, by their [peer.Name]. They
// are still asked for those nars after no criterion names them.
const setting = "removal_relied_on"

// parseNames reads the value of the setting.
func parseNames(text string) (names []string, err error) {
	if text == "" {
		return nil, nil
	}
	if err := json.Unmarshal([]byte(text), &names); err != nil {
		return nil, fmt.Errorf("the instances that nars were removed for, in the database: %w", err)
	}
	return names, nil
}

// Recorded returns the instances that nars were removed for, without users and passwords: the
// administrator must give these again. Recorded erases those that earlier versions stored.
func Recorded(ctx context.Context, x *index.Index) (urls []*url.URL, err error) {
	text, err := x.Setting(ctx, setting)
	if err != nil {
		return nil, err
	}
	names, err := parseNames(text)
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
			err = x.EraseSetting(ctx, setting, string(text))
		}
		if err != nil {
			return nil, fmt.Errorf("remove a password from the database: %w", err)
		}
	}
	return urls, nil
}

// Record notes that nars are removed because the instances at these URLs have them.
func Record(ctx context.Context, x *index.Index, urls []*url.URL) error {
	isKnown := func(names []string) bool {
		return !slices.ContainsFunc(urls, func(u *url.URL) bool { return !slices.Contains(names, peer.Name(u)) })
	}
	text, err := x.Setting(ctx, setting)
	if err != nil {
		return err
	}
	if names, err := parseNames(text); err != nil || isKnown(names) {
		return err
	}
	return x.Reclaim(ctx, func(tx *index.Tx) error {
		text, err := tx.Setting(setting)
		if err != nil {
			return err
		}
		names, err := parseNames(text)
		if err != nil {
			return err
		}
		for _, u := range urls {
			if name := peer.Name(u); !slices.Contains(names, name) {
				names = append(names, name)
			}
		}
		noted, err := json.Marshal(names)
		if err != nil {
			return err
		}
		return tx.SetSetting(setting, string(noted))
	})
}
