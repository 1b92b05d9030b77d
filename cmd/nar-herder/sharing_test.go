package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"nar-herder/storage/bytestore"
)

// asRoot skips a test that runs the program as several users if it has no root, or fails it
// in CI.
func asRoot(t *testing.T) {
	t.Helper()
	if os.Getuid() == 0 {
		return
	}
	if os.Getenv("CI") == "true" {
		t.Fatal("run the tests as root: this test uses several users")
	}
	t.Skip("run as root to run this test")
}

// sharedGroup is the group of the users of TestTwoUsers.
const sharedGroup = 60010

// asUser prepares a run of the program as one of the users, who also has a group of its
// own.
func asUser(uid uint32, umask, program string, args ...string) *process {
	cmd := exec.Command("/bin/sh", append([]string{"-c", `umask "$0"; exec "$@"`, umask, program}, args...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid, Groups: []uint32{sharedGroup}}}
	return commandOf(cmd)
}

// TestTwoUsers imports as one user, and serves, removes, dumps, compresses and exports as
// another, in group-writable directories; then the other way round, after the server was
// killed.
func TestTwoUsers(t *testing.T) {
	t.Parallel()
	asRoot(t)
	for umask, mode := range map[string][]uint32{"022": {0o775}, "077": {0o775, 0o2775}, "002": {0o775}} {
		for _, mode := range mode {
			t.Run(fmt.Sprintf("%#o, umask %s", mode, umask), func(t *testing.T) {
				t.Parallel()
				public, program := publicPlace(t)
				dir := share(t, filepath.Join(public.dir, "shared"), mode)
				p := place{dir, filepath.Join(dir, "index.db"), share(t, filepath.Join(dir, "storage"), mode)}
				source := filepath.Join(public.dir, "source")
				generate(t, source, 6)
				cached, cache, exported := filepath.Join(dir, "cached/zstd"), filepath.Join(dir, "cache"), filepath.Join(dir, "exported")
				base := func(n int) string { return fmt.Sprintf("%032d-item", n) }
				isStored := func(n int) bool { _, err := os.Stat(filepath.Join(p.storage, "nar", base(n))); return err == nil }
				for phase, users := range [][2]uint32{{60001, 60002}, {60002, 60001}} {
					importer, server := users[0], users[1]
					succeeds := func(uid uint32, args ...string) {
						t.Helper()
						if r := asUser(uid, umask, program, args...).run(t); r.status != 0 {
							t.Fatalf("user %d, %s: status %d, stderr %s", uid, args, r.status, r.err)
						}
					}
					own(t, source, importer)
					imports := func(n int) {
						t.Helper()
						succeeds(importer, p.args("import", filepath.Join(source, base(n)[:32]+".narinfo"))...)
					}
					first := 3 * phase
					imports(first)
					imports(first + 1)
					s := serve(t, asUser(server, umask, program, p.args("run-server", "--port=0", "--log-level=INFO", "--ttl=1s", "--storage-check-interval=1s",
						"--enable-cached-compression=zstd", "--cached-compression-directory=zstd="+cached, "--cached-compression-min-uses=1", "--storage-cache="+cache)...))
					imports(first + 2)
					if got := get(t, s.addresses[0], "/nar/"+base(first+2)); got.StatusCode != 200 {
						t.Errorf("the nar: %s", got.Status)
					}
					until(t, "the nar is compressed", func() bool {
						return strings.Contains(get(t, s.addresses[0], "/"+base(first + 2)[:32]+".narinfo").body, "Compression: zstd\n")
					})
					succeeds(server, p.args("remove", "--now", "/gnu/store/"+base(first))...)
					succeeds(importer, p.args("remove", "/gnu/store/"+base(first+1))...)
					until(t, "the withdrawn nar is deleted", func() bool { return !isStored(first) && !isStored(first+1) })
					for _, uid := range users {
						succeeds(uid, "dump", "--database="+p.database, "--database-dump="+filepath.Join(dir, "dump.db"))
						succeeds(uid, p.args("export", exported)...)
						// The other user restores its time as well.
						name := filepath.Join(exported, base(first + 2)[:32]+".narinfo")
						if info, err := os.Stat(name); err != nil || info.ModTime().Year() < 2000 {
							t.Errorf("an exported narinfo: %v, %v", info, err)
						}
						if err := os.Chtimes(name, time.Unix(0, 0), time.Unix(0, 0)); err != nil {
							t.Fatal(err)
						}
						succeeds(uid, p.args("check", "--repair", "--verify")...)
						succeeds(uid, "tag", "--database="+p.database, fmt.Sprintf("user=%d", uid), "/gnu/store/"+base(first+2))
					}
					if strings.Contains(get(t, s.addresses[0], "/health").body, "warnings") {
						t.Error("the health warns")
					}
					if strings.Contains(s.err.String(), "level=ERROR") || strings.Contains(s.err.String(), "permission denied") {
						t.Errorf("the server of phase %d: %s", phase, s.err.String())
					}
					if phase == 1 {
						s.stop(t, syscall.SIGTERM)
						break
					}
					wantShared(t, dir) // with the files that only exist while a server runs
					s.kill(t)
				}
				// Files of the other server can be removed, too.
				for uid := range uint32(2) {
					if r := asUser(60001+uid, umask, program, p.args("remove", "--now", "/gnu/store/"+base(2+3*int(1-uid)))...).run(t); r.status != 0 {
						t.Errorf("remove an imported nar: %s", r.err)
					}
				}
				wantShared(t, dir)
			})
		}
	}
}

// TestSpoolOfAnotherUser stops a mirror in the middle of a nar, and starts it again as another
// user.
func TestSpoolOfAnotherUser(t *testing.T) {
	t.Parallel()
	asRoot(t)
	p, directory, _ := coldNar(t, 4<<20)
	p.imports(t, directory)
	source := p.serve(t)
	public, program := publicPlace(t)
	dir := filepath.Join(public.dir, "shared")
	q := place{dir, filepath.Join(dir, "index.db"), filepath.Join(dir, "storage")}
	if err := os.MkdirAll(q.storage, 0o755); err != nil {
		t.Fatal(err)
	}
	succeed(t, "import", "--narinfos-only", "--database="+q.database, directory)
	own(t, dir, 60001)
	share(t, dir, 0o775)
	share(t, q.storage, 0o775)
	if err := errors.Join(os.Chown(q.database, -1, sharedGroup), os.Chmod(q.database, 0o664)); err != nil {
		t.Fatal(err)
	}
	args := q.args("run-server", "--port=0", "--log-level=INFO", "--mirror=http://"+source.addresses[0])
	mirror := serve(t, asUser(60001, "022", program, append(args, "--mirror-bandwidth=100K")...))
	until(t, "the nar is being fetched", func() bool { return metricWith(t, mirror.addresses[0], "narherder_mirror_nars_in_flight") == 1 })
	mirror.stop(t, os.Interrupt)
	if spool, err := os.ReadDir(filepath.Join(q.storage, ".nar-herder-spool")); err != nil || len(spool) != 1 {
		t.Errorf("the spool: %v, %v", spool, err)
	}
	mirror = serve(t, asUser(60002, "022", program, args...))
	until(t, "it is stored", func() bool { return metricWith(t, mirror.addresses[0], "narherder_stored_nars") == 1 })
}

// share makes a directory that is writable for the shared group.
func share(t *testing.T, name string, mode uint32) string {
	t.Helper()
	if err := errors.Join(os.MkdirAll(name, 0o755), os.Chown(name, -1, sharedGroup), syscall.Chmod(name, mode)); err != nil {
		t.Fatal(err)
	}
	return name
}

// own gives all files below a directory to a user.
func own(t *testing.T, directory string, uid uint32) {
	t.Helper()
	err := filepath.WalkDir(directory, func(name string, _ fs.DirEntry, err error) error {
		return errors.Join(err, os.Chown(name, int(uid), int(uid)))
	})
	if err != nil {
		t.Fatal(err)
	}
}

// wantShared checks the group and its permissions of all files below a directory: only
// their owners may write to nars.
func wantShared(t *testing.T, directory string) {
	t.Helper()
	err := filepath.WalkDir(directory, func(name string, entry fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		} else if err != nil {
			return err
		}
		info, err := entry.Info()
		if errors.Is(err, fs.ErrNotExist) || err == nil && info.Mode().Type() == fs.ModeSymlink {
			return nil
		} else if err != nil {
			return err
		}
		mode, want := info.Mode().Perm()&0o070, fs.FileMode(0o040)
		if entry.IsDir() {
			want = 0o070
		} else if filepath.Dir(name) == directory || strings.HasPrefix(name, filepath.Join(directory, "cache")) && (entry.Name() == "lock" || entry.Name() == bytestore.OwnerName) {
			want = 0o060 // of the database, dumps and locks
		}
		if gid := info.Sys().(*syscall.Stat_t).Gid; gid != sharedGroup || mode != want {
			t.Errorf("%s has mode %v and group %d, want %#o for group %d", name, info.Mode(), gid, want, sharedGroup)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

// TestSetUpByRoot: root has made the database, or a part of it, and the server runs as
// another user. It refuses to start, with the command to run.
func TestSetUpByRoot(t *testing.T) {
	t.Parallel()
	asRoot(t)
	for _, test := range []struct {
		name   string
		killed bool     // root's server, so that its log is left
		chown  []string // run before
	}{
		{"all", true, nil},
		{"all but the directory", false, []string{""}},
		{"the log", true, []string{"", "index.db"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			public, program := publicPlace(t)
			dir := filepath.Join(public.dir, "database")
			if err := os.Mkdir(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			p := place{dir, filepath.Join(dir, "index.db"), public.storage}
			p.imports(t, published(greeting))
			if test.killed {
				s := p.serveProcess(t)
				p.imports(t, published(entropy))
				until(t, "the server has made its reserve", func() bool { _, err := os.Stat(p.database + ".reserve"); return err == nil })
				s.kill(t)
			}
			for _, name := range test.chown {
				if err := os.Chown(filepath.Join(dir, name), 60001, 60001); err != nil {
					t.Fatal(err)
				}
			}
			args := p.args("run-server", "--port=0", "--log-level=INFO")
			refused := asUser(60001, "022", program, args...).run(t)
			command := regexp.MustCompile(`: run '(chown 60001 [^']+)'`).FindStringSubmatch(refused.err)
			if refused.status != 1 || strings.Count(refused.err, "\n") != 1 || !strings.Contains(refused.err, "belongs to root") || command == nil {
				t.Fatalf("status %d: %s", refused.status, refused.err)
			}
			if out, err := exec.Command("sh", "-c", command[1]).CombinedOutput(); err != nil {
				t.Fatalf("%s: %v: %s", command[1], err, out)
			}
			s := serve(t, asUser(60001, "022", program, args...))
			if got := get(t, s.addresses[0], "/health"); got.StatusCode != 200 || !strings.Contains(got.body, `"storage_writes":["permission denied: see the log"]`) {
				t.Errorf("the health: %s %s", got.Status, got.body)
			}
			s.stop(t, syscall.SIGTERM)
			if nars := filepath.Join(p.storage, "nar"); !strings.Contains(s.err.String(), "run 'chown 60001 "+nars+" "+nars+"/lzip'") {
				t.Errorf("the log doesn't say that the storage can't be written: %s", s.err.String())
			}
			if info, err := os.Stat(p.database + ".reserve"); err != nil || info.Sys().(*syscall.Stat_t).Uid != 60001 {
				t.Errorf("the reserve: %v, %v", info, err)
			}
		})
	}
}
