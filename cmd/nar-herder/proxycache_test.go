package main

import (
	"fmt"
	"testing"
)

// TestProxyCache runs nginx with a cache in front, which answers repeated requests.
func TestProxyCache(t *testing.T) {
	t.Parallel()
	nginx := required(t, "nginx")
	p := newPlace(t)
	p.imports(t, testdata+"/published")
	s := p.serve(t, "--ttl=1d", "--negative-ttl=1h")
	front := ownHost() + ":" + instancePort
	startNginx(t, nginx, front, fmt.Sprintf(`
		proxy_cache_path %s keys_zone=nars:1m;
		upstream herder { server %s; keepalive 4; }
		server {
			listen %s;
			location / { proxy_pass http://herder; proxy_cache nars; add_header X-Cache $upstream_cache_status always; }
		}`, t.TempDir(), s.addresses[0], front))
	const hello, helloHash = "g699dxrv55xnrdq6z90qwfmsgz16p3xg-hello-2.10.tar.gz", "0wz7x8ngv5y6qk5w3i659y2ccawyfniixrghnr4km447cls0p45k"
	for target, want := range map[string]struct {
		status int
		second string
	}{
		"/" + narinfoName(greeting):                    {200, "HIT"},
		"/nar/lzip/" + greeting:                        {200, "HIT"},
		"/nar/" + greeting:                             {200, "HIT"},
		"/nar/" + hello:                                {200, "HIT"},
		"/file/hello-2.10.tar.gz/sha256/" + helloHash:  {200, "HIT"},
		"/nar/lzip/00000000000000000000000000000000-x": {404, "HIT"},
		"/00000000000000000000000000000000.narinfo":    {404, "HIT"},
		"/health":                 {200, "MISS"},
		"/health/ready":           {200, "MISS"},
		"/recent-changes?after=0": {200, "MISS"},
		"/stored-nars/" + narinfoName(greeting)[:32]:       {200, "MISS"},
		"/" + narinfoName(greeting)[:32] + ".narinfo/info": {200, "MISS"},
		"/latest-database-dump":                            {200, "MISS"},
	} {
		if target == "/latest-database-dump" {
			until(t, "the first dump", func() bool { return get(t, s.addresses[0], target).StatusCode == 200 })
		}
		first := get(t, front, target)
		second := get(t, front, target)
		if first.StatusCode != want.status || first.Header.Get("X-Cache") != "MISS" {
			t.Errorf("%s: first %s, %s", target, first.Status, first.Header.Get("X-Cache"))
		}
		if second.StatusCode != want.status || second.Header.Get("X-Cache") != want.second || want.second == "HIT" && second.body != first.body {
			t.Errorf("%s: second %s, %s, want %s", target, second.Status, second.Header.Get("X-Cache"), want.second)
		}
	}
}
