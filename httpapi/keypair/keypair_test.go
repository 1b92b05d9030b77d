package keypair

import (
	"bytes"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"nar-herder/internal/selfsigned"
)

var now = time.Now().Truncate(time.Second)

// write writes a certificate and its key.
func write(t *testing.T, certificate, key string, from, until time.Time) {
	t.Helper()
	made, err := selfsigned.New(from, until, "farm.example")
	if err == nil {
		err = made.Write(certificate, key)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func files(t *testing.T) (certificate, key string) {
	dir := t.TempDir()
	return filepath.Join(dir, "chain.pem"), filepath.Join(dir, "key.pem")
}

// TestProblems warns before the expiry, in time for long and short lives, and of a wrong clock.
func TestProblems(t *testing.T) {
	t.Parallel()
	const day = 24 * time.Hour
	for _, test := range []struct {
		from, until time.Duration
		want        string
	}{
		{-day, 89 * day, ""},
		{-75 * day, 15 * day, ""},
		{-77 * day, 13 * day, "expires at"},
		{-day, 5 * day, ""},
		{-5 * day, day, "expires at"},
		{-90 * day, -time.Second, "has expired"},
		{day, 90 * day, "is valid only from"},
	} {
		certificate, key := files(t)
		write(t, certificate, key, now.Add(test.from), now.Add(test.until))
		var log bytes.Buffer
		k, err := Load(certificate, key, slog.New(slog.NewTextHandler(&log, nil)))
		if err != nil {
			t.Fatal(err)
		}
		got := strings.Join(k.Warnings(), "; ")
		if test.want == "" && got != "" || !strings.Contains(got, test.want) || strings.Contains(log.String(), "WARN") != (got != "") {
			t.Errorf("from %v to %v: %q, log %s", test.from, test.until, got, log.String())
		}
	}
}

// TestReplacing: files that don't belong together yet cause no warning at first, and the old
// certificate stays in use meanwhile.
func TestReplacing(t *testing.T) {
	t.Parallel()
	certificate, key := files(t)
	write(t, certificate, key, now, now.Add(1000*time.Hour))
	if err := os.Chmod(key, 0o644); err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	k, err := Load(certificate, key, slog.New(slog.NewTextHandler(&log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(log.String(), "all users of this machine can read the TLS key") {
		t.Errorf("%s", log.String())
	}
	old := k.current.Load()
	other, otherKey := files(t)
	write(t, other, otherKey, now, now.Add(2000*time.Hour))
	if err := os.Rename(other, certificate); err != nil {
		t.Fatal(err)
	}
	log.Reset()
	k.check(now, false)
	if k.current.Load() != old || log.Len() > 0 || k.Warnings() != nil {
		t.Errorf("between both renames: %v, %s", k.Warnings(), log.String())
	}
	for range 3 {
		k.check(now, false)
	}
	if k.current.Load() != old || strings.Count(log.String(), "can't use the new TLS certificate") != 1 || len(k.Warnings()) != 1 {
		t.Errorf("later: %v, %s", k.Warnings(), log.String())
	}
	if err := os.Rename(otherKey, key); err != nil {
		t.Fatal(err)
	}
	k.check(now, false)
	if k.current.Load() == old || !strings.Contains(log.String(), "TLS certificate reloaded") || k.Warnings() != nil {
		t.Errorf("after both: %v, %s", k.Warnings(), log.String())
	}
	// Without a change, nothing happens.
	used := k.current.Load()
	if k.check(now, false); k.current.Load() != used {
		t.Error("it is read again without a change")
	}
}
