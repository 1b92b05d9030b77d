package criteria

import (
	"strings"
	"testing"
	"time"

	"nar-herder/storage/index"
)

const day = 24 * time.Hour

func TestParse(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]Criterion{
		"stored-on=https://one.example":                  {},
		"stored-on=http://one.example:8734/sub":          {},
		"stored-on=https://one.example/a,b":              {},
		"stored-on=https://a.example,stored-on=http://b": {},
		"unused-for=30d":                                 {UnusedFor: 30 * day},
		"unused-for=2mo":                                 {UnusedFor: 60 * day},
		"added-before=2024-02-29":                        {addedBefore: time.Date(2024, 2, 29, 0, 0, 0, 0, time.UTC)},
		"added-before=3w":                                {olderThan: 21 * day},
		"tag=k=v":                                        {with: []index.Tag{{Key: "k", Value: "v"}}},
		"tag=k=":                                         {with: []index.Tag{{Key: "k"}}},
		"tag=k=a=b":                                      {with: []index.Tag{{Key: "k", Value: "a=b"}}},
		"tag=k=a,b":                                      {with: []index.Tag{{Key: "k", Value: "a,b"}}},
		"no-tag=k=v,tag=a=b":                             {with: []index.Tag{{Key: "a", Value: "b"}}, without: []index.Tag{{Key: "k", Value: "v"}}},
		"tag=a=b,tag=c=d":                                {with: []index.Tag{{Key: "a", Value: "b"}, {Key: "c", Value: "d"}}},
		"unreferenced":                                   {Unreferenced: true},
		"unpinned":                                       {},
		"unused-for=1h,unreferenced,unpinned":            {UnusedFor: time.Hour, Unreferenced: true},
		"unreferenced,added-before=1d,unused-for=1s":     {Unreferenced: true, olderThan: day, UnusedFor: time.Second},
		"stored-on=http://a/x,y,unused-for=1d,tag=k=v,w,z": {UnusedFor: day, with: []index.Tag{{Key: "k", Value: "v,w,z"}}},
	} {
		got, err := Parse(text)
		if err != nil || got.String() != text {
			t.Errorf("%s: %v, %q", text, err, got)
			continue
		}
		if got.UnusedFor != want.UnusedFor || !got.addedBefore.Equal(want.addedBefore) || got.olderThan != want.olderThan ||
			got.Unreferenced != want.Unreferenced || !sameTags(got.with, want.with) || !sameTags(got.without, want.without) {
			t.Errorf("%s: %+v", text, got)
		}
	}
	for text, want := range map[string]string{
		"stored-on=https://one.example/a,b":                "https://one.example/a,b",
		"stored-on=https://one.example/a%2Cstored-on=x":    "https://one.example/a%2Cstored-on=x",
		"stored-on=https://a.example,stored-on=http://b":   "https://a.example http://b",
		"stored-on=http://a/x,y,unused-for=1d,tag=k=v,w,z": "http://a/x,y",
	} {
		got, err := Parse(text)
		var urls []string
		for _, u := range Instances([]Criterion{got, got}) {
			urls = append(urls, u.String())
		}
		if err != nil || strings.Join(urls, " ") != want {
			t.Errorf("%s: %q, %v", text, urls, err)
		}
	}
}

func sameTags(a, b []index.Tag) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i] != b[i] {
			return false
		}
	}
	return true
}

// TestBadCriteria: errors show the right syntax.
func TestBadCriteria(t *testing.T) {
	t.Parallel()
	for text, want := range map[string][]string{
		"":                                {"stored-on=URL", "unused-for=DURATION", "unreferenced"},
		"stored":                          {`"stored"`, "stored-on=URL", "no-tag=KEY=VALUE"},
		"stored-on":                       {"stored-on=URL"},
		"stored-on=":                      {"http://HOST"},
		"stored-on=one.example":           {"http://HOST"},
		"stored-on=ftp://one.example":     {"http://HOST"},
		"stored-on=http://":               {"http://HOST"},
		"stored-on=http://a\x00b":         {"http://HOST"},
		"unused-for":                      {"unused-for=DURATION"},
		"unused-for=5":                    {`"5"`, "s, min, h, d, w, mo"},
		"unused-for=-5d":                  {`"-5d"`, "s, min, h, d, w, mo"},
		"unused-for=5m":                   {`"5m"`, "5min", "5mo"},
		"added-before=5m":                 {`"5m"`, "5min", "5mo", "YYYY-MM-DD"},
		"unused-for=0d":                   {"unused-for=0d"},
		"added-before=":                   {"YYYY-MM-DD", "90d"},
		"added-before=0d":                 {"added-before=0d"},
		"added-before=2024-02-30":         {`"2024-02-30"`, "YYYY-MM-DD", "90d"},
		"added-before=yesterday":          {`"yesterday"`, "YYYY-MM-DD", "90d"},
		"tag=k":                           {"tag=KEY=VALUE"},
		"tag==v":                          {"tag=KEY=VALUE"},
		"no-tag=k":                        {"no-tag=KEY=VALUE"},
		"unreferenced=yes":                {"unreferenced"},
		"unpinned=":                       {"unpinned"},
		"unreferenced,":                   {`""`, "stored-on=URL"},
		",unreferenced":                   {`""`, "stored-on=URL"},
		"unreferenced, unpinned":          {`" unpinned"`, "unpinned"},
		"unreferenced,pinned":             {`"pinned"`, "unpinned"},
		"unused-for=1d,unused":            {`"1d,unused"`},
		"unused-for=1d,unused-for=2d":     {"unused-for", "twice"},
		"added-before=1d,added-before=2d": {"added-before", "twice"},
		"added-before=2020-01-01,added-before=2021-01-01": {"added-before", "twice"},
		"added-before=0001-01-01":                         {"added-before=0001-01-01"},
	} {
		got, err := Parse(text)
		if err == nil {
			t.Errorf("%q: %+v", text, got)
			continue
		}
		for _, part := range want {
			if !strings.Contains(err.Error(), part) {
				t.Errorf("%q: %v; want %q in it", text, err, part)
			}
		}
		if strings.Contains(err.Error(), "\n") {
			t.Errorf("%q: more than a line: %v", text, err)
		}
	}
}

func FuzzParseCriterion(f *testing.F) {
	for _, text := range []string{
		"stored-on=https://one.example/a,b,unused-for=30d", "added-before=2024-02-29,unreferenced,unpinned", "tag=k=v,w,no-tag=a=", "added-before=90d", ",", "=", "unused-for=99999999999m",
	} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		c, err := Parse(text)
		if err != nil {
			return
		}
		// The criterion has all written conditions: nothing may be removed by half
		// a criterion.
		conditions := len(splitConditions(text))
		found := len(c.StoredOn) + len(c.with) + len(c.without) + strings.Count(","+text+",", ",unpinned,")
		if strings.Contains(","+text+",", ",unreferenced,") != c.Unreferenced {
			t.Fatalf("%q: %+v", text, c)
		}
		found += strings.Count(","+text+",", ",unreferenced,")
		for _, is := range []bool{c.UnusedFor > 0, c.olderThan > 0, !c.addedBefore.IsZero()} {
			if is {
				found++
			}
		}
		if found != conditions {
			t.Fatalf("%q: %d conditions of %d: %+v", text, found, conditions, c)
		}
		for _, u := range c.StoredOn {
			if u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
				t.Fatalf("%q: %v", text, u)
			}
		}
	})
}

func TestHolds(t *testing.T) {
	t.Parallel()
	now := time.Date(2024, 6, 1, 12, 0, 0, 0, time.UTC)
	a, b := index.Tag{Key: "k", Value: "a"}, index.Tag{Key: "k", Value: "b"}
	for _, test := range []struct {
		criterion string
		facts     Facts
		want      bool
	}{
		{"unpinned", Facts{}, true},
		{"stored-on=http://x", Facts{Added: now}, true}, // of the local conditions
		{"unused-for=10d", Facts{Added: now.Add(-20 * day)}, true},
		{"unused-for=10d", Facts{Added: now.Add(-10 * day)}, true},
		{"unused-for=10d", Facts{Added: now.Add(-10*day + 1)}, false},
		{"unused-for=10d", Facts{Added: now.Add(-20 * day), LastUsed: now.Add(-10 * day)}, true},
		{"unused-for=10d", Facts{Added: now.Add(-20 * day), LastUsed: now.Add(-9 * day)}, false},
		{"unused-for=10d", Facts{Added: now.Add(-9 * day), LastUsed: now.Add(-20 * day)}, false}, // it was added again
		{"unused-for=10d", Facts{Added: now.Add(-20 * day), LastUsed: now.Add(day)}, false},      // by another clock
		{"added-before=10d", Facts{Added: now.Add(-10 * day), LastUsed: now}, true},
		{"added-before=10d", Facts{Added: now.Add(-10*day + 1)}, false},
		{"added-before=2024-05-31", Facts{Added: time.Date(2024, 5, 30, 23, 59, 59, 0, time.UTC)}, true},
		{"added-before=2024-05-31", Facts{Added: time.Date(2024, 5, 31, 0, 0, 0, 0, time.UTC)}, false},
		{"tag=k=a", Facts{Tags: []index.Tag{b, a}}, true},
		{"tag=k=a", Facts{Tags: []index.Tag{b}}, false},
		{"tag=k=a", Facts{}, false},
		{"no-tag=k=a", Facts{}, true},
		{"no-tag=k=a", Facts{Tags: []index.Tag{b}}, true},
		{"no-tag=k=a", Facts{Tags: []index.Tag{b, a}}, false},
		{"tag=k=a,no-tag=k=b", Facts{Tags: []index.Tag{a}}, true},
		{"tag=k=a,no-tag=k=b", Facts{Tags: []index.Tag{a, b}}, false},
		{"tag=k=a,tag=k=b", Facts{Tags: []index.Tag{a}}, false},
		{"tag=k=a,unused-for=10d", Facts{Tags: []index.Tag{a}, Added: now.Add(-day)}, false},
		{"unused-for=10d,added-before=30d", Facts{Added: now.Add(-20 * day)}, false},
		{"added-before=2024-05-31,added-before=10d", Facts{Added: now.Add(-9 * day)}, false},
		{"unused-for=10d,added-before=30d", Facts{Added: now.Add(-30 * day), LastUsed: now.Add(-10 * day)}, true},
	} {
		criterion, err := Parse(test.criterion)
		if err != nil {
			t.Fatal(err)
		}
		if got := criterion.Holds(test.facts, now); got != test.want {
			t.Errorf("%s with %+v: %v", test.criterion, test.facts, got)
		}
	}
}
