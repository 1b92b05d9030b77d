package cached

import (
	"context"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"nar-herder/compression"
	"nar-herder/narinfo"
	"nar-herder/storage/index"
)

// TestLoweredTTL restarts with a shorter TTL of a type: a file that is withdrawn then stays
// for clients with an earlier narinfo.
func TestLoweredTTL(t *testing.T) {
	t.Parallel()
	const day = 24 * time.Hour
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, dir, func(o *Options) {
			o.TTL, o.Types[0].TTL = new(time.Hour), new(9*day)
			o.Types[0].Unused = new(day)
			o.Types[0].Name, o.Types[0].Level = "gzip", 6
		})
		k := b.kinds["gzip"]
		if err := b.scan(t.Context(), k, true); err != nil {
			t.Fatal(err)
		}
		b.do(context.Background(), task{hashOf(t, hello), k})
		time.Sleep(2 * day)
		b.options.Types[0].TTL = new(time.Second)
		restarted := time.Now()
		if err := b.index.Advertise(t.Context(), restarted, b.options.Advertised()); err != nil {
			t.Fatal(err)
		}
		for _, after := range []time.Duration{0, 9*day - time.Millisecond, 9 * day} {
			time.Sleep(time.Until(restarted.Add(after)))
			if err := b.retire(t.Context(), k, time.Now()); err != nil {
				t.Fatal(err)
			}
			files, err := os.ReadDir(k.Directory)
			if err != nil || (len(files) == 1) != (after < 9*day) || b.names(hello, "gzip") {
				t.Errorf("after %v there are %d files, %v", after, len(files), err)
			}
		}
		freed := "nars=1 freed_from=" + restarted.Add(9*day).UTC().Format(time.RFC3339)
		if log := b.log.String(); strings.Count(log, "withdrew cached nars") != 1 || !strings.Contains(log, freed) {
			t.Errorf("the log lacks %s: %s", freed, log)
		}
	})
}

func TestAdvertised(t *testing.T) {
	t.Parallel()
	const hour, day = time.Hour, 24 * time.Hour
	o := Options{TTLs: narinfo.TTLs{TTL: new(hour)}, Types: []Type{
		{Spec: compression.Spec{Name: "zstd"}, TTLs: narinfo.TTLs{TTL: new(9 * day), NewTTL: new(2 * day)}}, {Spec: compression.Spec{Name: "lzip"}}, {Spec: compression.Spec{Name: "gzip"}, TTLs: narinfo.TTLs{TTL: new(hour / 2)}},
	}}
	all := o.Advertised()
	for kind, want := range map[string]index.Advertised{
		// A narinfo with an lzip file may also have a zstd file.
		index.Narinfos: {TTL: 2 * day, Grace: 9 * day}, "zstd": {TTL: 2 * day, Grace: 9 * day}, "lzip": {TTL: 2 * day, Grace: 9 * day}, "gzip": {TTL: hour / 2, Grace: hour / 2},
	} {
		if all[kind] != want {
			t.Errorf("%s: %v, want %v", kind, all[kind], want)
		}
	}
	o.LimitTTLs(time.Minute)
	for kind, got := range o.Advertised() {
		if got.TTL != time.Minute || got.Grace != time.Minute {
			t.Errorf("%s, limited: %v", kind, got)
		}
	}
	o = Options{}
	if o.LimitTTLs(time.Minute); *o.TTL != time.Minute || *o.NewTTL != time.Minute {
		t.Errorf("without any: %v, %v", *o.TTL, *o.NewTTL)
	}
}
