// Package criteria parses and evaluates removal criteria: the conditions under which a nar
// may be removed from the storage.
package criteria

import (
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"

	"nar-herder/internal/redact"
	"nar-herder/internal/stamp"
	"nar-herder/narinfo"
	"nar-herder/peer"
	"nar-herder/storage/index"
)

// Criterion says when a nar may be removed from the storage: if all of its conditions hold.
type Criterion struct {
	text string
	// StoredOn are instances that must all have the nar stored.
	StoredOn []*url.URL
	// UnusedFor is how long no client may have requested the nar.
	UnusedFor time.Duration
	// addedBefore is a moment, and olderThan a duration, before which the item must have been
	// added.
	addedBefore time.Time
	olderThan   time.Duration
	// with and without are tags that the item must have, or must not have.
	with, without []index.Tag
	// Unreferenced requires that no item with a nar in this storage refers to it.
	Unreferenced bool
}

// String returns the criterion as it was given, without passwords.
func (c Criterion) String() string { return c.text }

// conditions are the names of all conditions and their syntax.
var conditions = []struct{ name, form string }{
	{"stored-on", "stored-on=URL"},
	{"unused-for", "unused-for=DURATION"},
	{"added-before", "added-before=YYYY-MM-DD or DURATION"},
	{"tag", "tag=KEY=VALUE"},
	{"no-tag", "no-tag=KEY=VALUE"},
	{"unreferenced", "unreferenced"},
	{"unpinned", "unpinned"},
}

// Parse parses a criterion: conditions, separated by commas. A comma belongs to a value unless
// the name of a condition follows; in a URL, it may be written %2C.
func Parse(text string) (Criterion, error) {
	criterion := Criterion{text: redact.Text(text)}
	for _, part := range splitConditions(text) {
		if err := criterion.add(part); err != nil {
			return Criterion{}, errors.New(redact.Text(err.Error()))
		}
	}
	return criterion, nil
}

// splitConditions splits at commas before the name of a condition.
func splitConditions(text string) (parts []string) {
	for part := range strings.SplitSeq(text, ",") {
		name, _, _ := strings.Cut(part, "=")
		if len(parts) > 0 && form(name) == "" && strings.Contains(parts[len(parts)-1], "=") {
			parts[len(parts)-1] += "," + part
			continue
		}
		parts = append(parts, part)
	}
	return parts
}

// form returns the syntax of a condition; "" for an unknown name.
func form(name string) string {
	for _, condition := range conditions {
		if condition.name == name {
			return condition.form
		}
	}
	return ""
}

func (c *Criterion) add(part string) error {
	name, value, hasValue := strings.Cut(part, "=")
	form := form(name)
	if form == "" {
		var forms []string
		for _, condition := range conditions {
			forms = append(forms, condition.form)
		}
		return fmt.Errorf("%q is not a removal criterion: want one or more of %s, separated by commas", part, strings.Join(forms, "; "))
	}
	if hasValue != strings.Contains(form, "=") {
		return fmt.Errorf("invalid condition %q: want %s", part, form)
	}
	switch name {
	case "stored-on":
		parsed, err := peer.ParseURL(value)
		if err != nil {
			return err
		}
		c.StoredOn = append(c.StoredOn, parsed)
	case "unused-for":
		return addDuration(&c.UnusedFor, part, value)
	case "added-before":
		day, err := time.Parse(time.DateOnly, value)
		switch {
		case err != nil:
			if _, err := narinfo.ParseDuration(value); err != nil {
				return fmt.Errorf("want a day, YYYY-MM-DD, or a duration, such as 90d: %w", err)
			}
			return addDuration(&c.olderThan, part, value)
		case day.IsZero():
			return fmt.Errorf("%q: the date is too early", part)
		case !c.addedBefore.IsZero():
			return fmt.Errorf("%q: added-before is given twice", part)
		}
		c.addedBefore = day
	case "tag", "no-tag":
		key, tagValue, ok := strings.Cut(value, "=")
		if !ok || key == "" {
			return fmt.Errorf("invalid condition %q: want %s", part, form)
		}
		if tag := (index.Tag{Key: key, Value: tagValue}); name == "tag" {
			c.with = append(c.with, tag)
		} else {
			c.without = append(c.without, tag)
		}
	case "unreferenced":
		c.Unreferenced = true
	case "unpinned":
		// All criteria imply this: pinned items are never removed.
	}
	return nil
}

// addDuration sets a condition's duration, which must be positive and given once.
func addDuration(duration *time.Duration, part, value string) error {
	name, _, _ := strings.Cut(part, "=")
	d, err := narinfo.ParseDuration(value)
	switch {
	case err != nil:
		return err
	case d <= 0:
		return fmt.Errorf("%q: the duration must be positive", part)
	case *duration != 0:
		return fmt.Errorf("%q: %s is given twice", part, name)
	}
	*duration = d
	return nil
}

// Facts are the inputs of the local conditions.
type Facts struct {
	Added, LastUsed time.Time
	// CountedSince is when counting of uses began: earlier uses are unknown.
	CountedSince time.Time
	Tags         []index.Tag // only if a criterion uses tags
	// AheadSince is when times were first found to be ahead; zero for not before.
	AheadSince time.Time
}

// past replaces a time that a wrong clock has stored.
func (f *Facts) past(t, now time.Time) time.Time {
	if stamp.IsWrong(t, now) && !f.AheadSince.IsZero() {
		t = f.AheadSince
	}
	return stamp.Past(t, now)
}

// Holds reports whether the local conditions hold: those that need neither other instances
// nor other items.
func (c *Criterion) Holds(f Facts, now time.Time) bool {
	has := func(wanted index.Tag) bool {
		for _, tag := range f.Tags {
			if tag == wanted {
				return true
			}
		}
		return false
	}
	for _, tag := range c.with {
		if !has(tag) {
			return false
		}
	}
	for _, tag := range c.without {
		if has(tag) {
			return false
		}
	}
	added, used := f.past(f.Added, now), f.past(f.LastUsed, now)
	for _, since := range []time.Time{added, f.past(f.CountedSince, now)} {
		if used.Before(since) {
			used = since
		}
	}
	return (c.UnusedFor == 0 || now.Sub(used) >= c.UnusedFor) &&
		(c.olderThan == 0 || now.Sub(added) >= c.olderThan) &&
		(c.addedBefore.IsZero() || added.Before(c.addedBefore))
}

// AsksTags reports whether Holds needs the item's tags.
func (c *Criterion) AsksTags() bool { return len(c.with)+len(c.without) > 0 }

// Instances returns the instances that criteria name, each once, in order.
func Instances(criteria []Criterion) (urls []*url.URL) {
	known := make(map[string]bool)
	for _, c := range criteria {
		for _, u := range c.StoredOn {
			if !known[u.String()] {
				known[u.String()] = true
				urls = append(urls, u)
			}
		}
	}
	return urls
}
