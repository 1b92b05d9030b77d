package peer_test

import (
	"errors"
	"nar-herder/peer"
	"nar-herder/peer/download"
	"net/http"
	"net/http/httptest"
	"net/url"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestPassword: the password is sent to the peer, and appears nowhere else.
func TestPassword(t *testing.T) {
	t.Parallel()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if user, password, ok := r.BasicAuth(); !ok || user != "me" || password != "secret" {
			t.Errorf("%s comes from %q with %q", r.URL, user, password)
		}
		http.Redirect(w, r, "http://me:secret@"+r.Host+r.URL.Path, http.StatusFound)
	}))
	t.Cleanup(server.Close)
	base, err := url.Parse(strings.Replace(server.URL, "http://", "http://me:secret@", 1) + "/")
	if err != nil {
		t.Fatal(err)
	}
	p := peer.New(base, peer.Self{})
	failures := map[string]error{"itself": errors.New(p.String())}
	_, failures["download"] = download.Fetch(t.Context(), p, peer.DumpPath, filepath.Join(t.TempDir(), "file"), false, nil)
	_, _, failures["look"] = download.Look(t.Context(), p, peer.DumpPath, false)
	_, failures["changes after"] = p.ChangesAfter(t.Context(), peer.Known{Instance: "x", Position: 1})
	failures["changes since"] = p.ChangesSince(t.Context(), time.Now(), nil)
	_, failures["stream"] = p.Changes(t.Context(), peer.Known{Instance: "x", Position: 1})
	_, _, failures["stored"] = p.Stored(t.Context(), nil)
	_, _, failures["nar"] = p.OpenFile(t.Context(), peer.TestItem(t, 1), 0, 0, -1, nil)
	_, _, failures["locate"] = p.Locate(t.Context(), peer.TestItem(t, 1), 0, nil)
	for name, err := range failures {
		if err == nil || strings.Contains(err.Error(), "secret") || !strings.Contains(err.Error(), base.Hostname()) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
