package main

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"nar-herder/storage/bytestore"
)

// desk is the workplace of an operator who makes a mistake: an instance, and another one
// that must not be harmed. Both have the same items.
type desk struct {
	place
	other place
	root  string // parent directory of both
}

// slip is an operator's mistake. It must not lose anything, or go unnoticed.
type slip struct {
	name string
	// args prepares the mistake, and returns the command line. Neither instance may
	// change.
	args   func(t *testing.T, d *desk) []string
	status int
	says   []string
	// run is for mistakes that need more than one command.
	run func(t *testing.T, d *desk)
}

// newDesk copies two instances.
func newDesk(t *testing.T, farm, other place) *desk {
	t.Helper()
	root := t.TempDir()
	copied := func(from place, name string) place {
		dir := filepath.Join(root, name)
		to := place{dir, filepath.Join(dir, "index.db"), filepath.Join(dir, "storage")}
		if err := os.CopyFS(dir, os.DirFS(from.dir)); err != nil {
			t.Fatal(err)
		}
		owner := filepath.Join(to.storage, bytestore.OwnerName)
		if err := os.WriteFile(owner, []byte(strings.ReplaceAll(read(t, owner), from.dir, dir)), 0o644); err != nil {
			t.Fatal(err)
		}
		return to
	}
	return &desk{copied(farm, "farm"), copied(other, "other"), root}
}

// at returns the arguments of a command with another storage.
func (d *desk) at(storage, command string, more ...string) []string {
	return place{d.dir, d.database, storage}.args(command, more...)
}

// make makes a directory below the root.
func (d *desk) make(t *testing.T, name string) string {
	t.Helper()
	name = filepath.Join(d.root, name)
	if err := os.MkdirAll(name, 0o755); err != nil {
		t.Fatal(err)
	}
	return name
}

// source makes a directory of narinfos and nars to import.
func (d *desk) source(t *testing.T) string {
	t.Helper()
	source := d.make(t, "source")
	if err := os.CopyFS(filepath.Join(source, "nar"), os.DirFS(filepath.Join(d.storage, "nar"))); err != nil {
		t.Fatal(err)
	}
	for _, name := range small() {
		if err := os.WriteFile(filepath.Join(source, filepath.Base(name)), []byte(read(t, name)), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return source
}

func (d *desk) state(t *testing.T) string { return d.dump(t) + d.other.dump(t) }

// runSlip runs a command, and checks that neither instance changes.
func (d *desk) runSlip(t *testing.T, args []string, status int, says ...string) result {
	t.Helper()
	before := d.state(t)
	r := runProgram(t, args...)
	if r.status != status {
		t.Errorf("%q: status %d, want %d: %s%s", args, r.status, status, r.out, r.err)
	}
	for _, text := range says {
		if !strings.Contains(r.out+r.err, text) {
			t.Errorf("%q does not say %q: %s%s", args, text, r.out, r.err)
		}
	}
	if d.state(t) != before {
		t.Errorf("%q: an instance has changed", args)
	}
	return r
}

// TestSlips makes common mistakes. Each is refused, or harmless and reported.
func TestSlips(t *testing.T) {
	t.Parallel()
	farm, other := newPlace(t), newPlace(t)
	for _, p := range []place{farm, other} {
		p.imports(t, append([]string{"--tag=kind=good"}, small()...)...)
	}
	for _, s := range slices.Concat(commandSlips, servedSlips, signSlips) {
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			d := newDesk(t, farm, other)
			if s.run != nil {
				s.run(t, d)
				return
			}
			d.runSlip(t, s.args(t, d), s.status, s.says...)
		})
	}
}

// TestSlipsElsewhere checks that the tests of other slips exist.
func TestSlipsElsewhere(t *testing.T) {
	t.Parallel()
	var all strings.Builder
	for _, dir := range []string{".", "../../storage", "../../storage/index", "../../removal", "../../removal/withdrawal", "../../mirror", "../../compression/cached"} {
		for _, name := range must(filepath.Glob(filepath.Join(dir, "*_test.go"))) {
			all.WriteString(read(t, name))
		}
	}
	for slip, test := range slipsElsewhere {
		if !strings.Contains(all.String(), "\nfunc "+test+"(t *testing.T) {") {
			t.Errorf("%s: no test %s", slip, test)
		}
	}
}

// slipsElsewhere maps slips to other tests.
var slipsElsewhere = map[string]string{
	// By area: owners, removal, TTLs, commands, disks, users.
	"A: two servers on one database":                                    "TestOneServer",
	"A: --advertise on an address that other machines can't reach":      "TestAdvertiseSlips",
	"A: the cached directory of another instance":                       "TestOneServer",
	"A: the dump path of another instance":                              "TestOneServer",
	"A: a copied database beside its original":                          "TestCopiedDatabase",
	"A: a mirror with a storage that has nars and no owner":             "TestUnownedStorage",
	"A: a server keeps running after another claims its storage":        "TestOwnershipLost",
	"B: requests of anybody delay removal":                              "TestAnonymousQuestions",
	"B: instances that remove by stored-on of each other":               "TestRemovalKilled",
	"C: a cached compression's TTL is lowered":                          "TestLoweredTTL",
	"D: export --delete with a typo in --tag":                           "TestExportSlips",
	"D: export into the directory of another program":                   "TestExportSlips",
	"D: remove while the storage is not mounted, or another instance's": "TestRemoveDoubtfulStorage",
	"D: check --repair while the source can't be reached":               "TestRepairFaults",
	"D: import without a storage, or with an unset variable":            "TestImportWithoutStorage",
	"E: the disk is full":                                               "TestFullDisk",
	"E: the file system of the database is full at the start":           "TestStartFull",
	"E: a storage that can't be written":                                "TestRemoveFailedDeletions",
	"F: commands as another user of the group":                          "TestTwoUsers",
	"F: all was set up by root, and the server is another user":         "TestSetUpByRoot",
	"F: minutes as m, in other options":                                 "TestAmbiguousMonths",

	"the file system of the database is not mounted":          "TestLostDatabase",
	"the disk with all nars is lost, and an empty one put in": "TestLostStorage",
	"a database of an older version":                          "TestOlderDatabase",
	"a database of a newer version, or of another program":    "TestBadDatabases",
	"no database, or an empty one":                            "TestNoDatabase",
	"a migration is stopped half-way":                         "TestServerConvertsKilled",
	"removed names of options":                                "TestOldNames",
	"values of options that make no sense":                    "TestBadOptions",
	"an option that widens a removal, in the environment":     "TestConfigOfCommands",
	"storages that overlap are copied to each other":          "TestCopyOptions",
	"a storage is copied to that of another instance":         "TestCopyOwned",
	"an import is interrupted and run again":                  "TestInterruptedImport",
	"a link in an imported directory leads out of it":         "TestImportLinks",
	"sign is killed or interrupted, and run again":            "TestSignKilled",
	"sign on a mirror":                                        "TestSignMirrored",
	"sign would hide a damaged or forged narinfo":             "TestSignDoubtful",
	"the clock was ahead":                                     "TestClockWasAhead",
	"the clock was ahead when items were withdrawn":           "TestWithdrawnAhead",
	"a TTL was advertised under a wrong clock":                "TestAdvertiseWrongClock",
	"a source restored from a backup":                         "TestBackupRestored",
	"a cycle of mirrors":                                      "TestCycle",
	"an instance that is named in its own stored-on":          "TestRemovalOnSelf",
	"stored-on names an instance with the same storage":       "TestRemovalSharedStorage",
	"a storage that is read through a second name":            "TestCopyReadOnly",
	"the storage is not writable for the server alone":        "TestUndeletable",
	"a front end's storage is not mounted as a whole":         "TestHealthReads",
}

// asDatabase makes a database of another program.
func asDatabase(t *testing.T, d *desk) string {
	t.Helper()
	name := filepath.Join(d.root, "cookies.db")
	execute(t, name, "CREATE TABLE cookies (id INTEGER PRIMARY KEY)")
	return name
}

// privateKey makes a private key.
func (d *desk) privateKey(t *testing.T) string {
	t.Helper()
	name := filepath.Join(d.root, "signing-key.sec")
	if err := os.WriteFile(name, []byte("(key-data (public-key (ecc (curve Ed25519) (q #00#))) (private-key (ecc (curve Ed25519) (q #00#) (d #00#))))"), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

const typo = "00000000000000000000000000000000-typo"

// commandSlips are slips of a single command.
var commandSlips = []slip{
	{name: "import into a storage that is not mounted", status: 1, says: []string{"none of the stored nars", "is it mounted?"},
		args: func(t *testing.T, d *desk) []string {
			return d.at(d.make(t, "unmounted"), "import", "--keep", d.source(t))
		}},
	{name: "an import continued with another storage", status: 1, says: []string{"none of the stored nars"},
		args: func(t *testing.T, d *desk) []string {
			return d.at(d.make(t, "second"), "import", "--keep", published(plus))
		}},
	{name: "import with a storage one level too high", status: 1, says: []string{"none of the stored nars"},
		args: func(t *testing.T, d *desk) []string { return d.at(d.dir, "import", "--keep", d.source(t)) }},
	{name: "import with a storage one level too low", status: 1, says: []string{"none of the stored nars"},
		args: func(t *testing.T, d *desk) []string {
			return d.at(filepath.Join(d.storage, "nar"), "import", "--keep", d.source(t))
		}},
	{name: "import with the storage of another instance", status: 1, says: []string{"belongs to another instance", "--yes="},
		args: func(t *testing.T, d *desk) []string { return d.at(d.other.storage, "import", "--keep", d.source(t)) }},
	{name: "import with storage and database swapped", status: 1, says: []string{"not a directory"},
		args: func(t *testing.T, d *desk) []string {
			return []string{"import", "--database=" + d.storage, "--storage=" + d.database, d.source(t)}
		}},
	{name: "import of the same directory twice", says: []string{"5 known"},
		args: func(t *testing.T, d *desk) []string { return d.args("import", d.source(t)) }},
	{name: "import with a slash at the end of the storage's name", says: []string{"5 known"},
		args: func(t *testing.T, d *desk) []string { return d.at(d.storage+"//", "import", "--keep", d.source(t)) }},
	{name: "import by symbolic links to the database and the storage", says: []string{"5 known"},
		args: func(t *testing.T, d *desk) []string {
			links := d.make(t, "links")
			if err := errors.Join(os.Symlink(d.database, links+"/i.db"), os.Symlink(d.storage, links+"/nars")); err != nil {
				t.Fatal(err)
			}
			return []string{"import", "--database=" + links + "/i.db", "--storage=" + links + "/nars", d.source(t)}
		}},
	{name: "import of a directory that is not there", status: 1, says: []string{"no such file or directory"},
		args: func(t *testing.T, d *desk) []string { return d.args("import", d.root+"/absent") }},
	{name: "import from a directory without narinfos", says: []string{"no narinfos found"},
		args: func(t *testing.T, d *desk) []string { return d.args("import", d.source(t)+"/nar") }},
	{name: "import with an empty database name", status: 1, says: []string{"missing or empty"},
		args: func(t *testing.T, d *desk) []string {
			return []string{"import", "--database=", "--storage=" + d.storage, d.source(t)}
		}},
	{name: "a new index in the storage of another instance", status: 1, says: []string{"belongs to instance"},
		args: func(t *testing.T, d *desk) []string {
			return []string{"import", "--database=" + d.root + "/new.db", "--storage=" + d.storage, d.source(t)}
		}},
	{name: "import with the ACL of another place", status: 1, says: []string{"unauthorized key", "5 failed"},
		args: func(t *testing.T, d *desk) []string {
			return d.args("import", "--keep", "--acl="+filepath.Join(testdata, "production/ci.guix.gnu.org.pub"), d.source(t))
		}},
	{name: "import with a private key for a public one", status: statusUsage, says: []string{"private key", "name a file that begins with"},
		args: func(t *testing.T, d *desk) []string {
			return d.args("import", "--authorized-key="+d.privateKey(t), d.source(t))
		}},
	{name: "import with a directory for the ACL", status: 1, says: []string{"not a regular file", "/etc/guix/acl"},
		args: func(t *testing.T, d *desk) []string { return d.args("import", "--acl="+d.root, d.source(t)) }},
	{name: "import with an empty variable for the ACL", status: 1, says: []string{"--acl=", "no such file"},
		args: func(t *testing.T, d *desk) []string { return d.args("import", "--acl=", d.source(t)) }},
	{name: "a server with a private key for a public one", status: statusUsage, says: []string{"private key"},
		args: func(t *testing.T, d *desk) []string {
			return d.args("run-server", "--port=0", "--signing-key="+d.privateKey(t))
		}},
	{name: "check with the ACL of another place", status: 1, says: []string{"unauthorized: ", "next: "},
		args: func(t *testing.T, d *desk) []string {
			return d.args("check", "--acl="+filepath.Join(testdata, "production/ci.guix.gnu.org.pub"))
		}},

	{name: "remove with an empty list", says: []string{"0 items withdrawn"},
		args: func(t *testing.T, d *desk) []string { return d.args("remove", "-") }},
	{name: "remove with a variable that is not set", status: statusUsage, says: []string{"not a store item", "nothing was removed"},
		args: func(t *testing.T, d *desk) []string { return d.args("remove", "--now", "") }},
	{name: "remove with the store itself", status: statusUsage, says: []string{"not a store item", "nothing was removed"},
		args: func(t *testing.T, d *desk) []string { return d.args("remove", "--now", "/gnu/store/") }},
	{name: "remove with a pattern", status: statusUsage, says: []string{"not a store item", "nothing was removed"},
		args: func(t *testing.T, d *desk) []string { return d.args("remove", greeting, "/gnu/store/*") }},
	{name: "remove with a typo in the tag", says: []string{"0 items withdrawn"},
		args: func(t *testing.T, d *desk) []string { return d.args("remove", "--tag=kind=goood") }},
	{name: "remove of an item that is not there", status: 1, says: []string{typo[:32], "not in the index"},
		args: func(t *testing.T, d *desk) []string { return d.args("remove", "--now", typo) }},
	{name: "tag with a typo in the item", status: 1, says: []string{typo[:32], "not in the index", "tagged 0 items"},
		args: func(t *testing.T, d *desk) []string {
			return []string{"tag", "--database=" + d.database, "kind=odd", typo}
		}},
	{name: "untag with a typo in the tag", says: []string{"untagged 0 items"},
		args: func(t *testing.T, d *desk) []string {
			return []string{"untag", "--database=" + d.database, "kind=goood", greeting}
		}},
	{name: "pin with a typo", status: 1, says: []string{typo[:32], "--allow-missing"},
		args: func(t *testing.T, d *desk) []string { return []string{"pin", "--database=" + d.database, typo} }},

	{name: "check --repair of a storage that is not mounted", status: 2, says: []string{"is it mounted?"},
		args: func(t *testing.T, d *desk) []string { return d.at(d.make(t, "unmounted"), "check", "--repair") }},
	{name: "check --repair of the storage of another instance", status: 2, says: []string{"another instance"},
		args: func(t *testing.T, d *desk) []string { return d.at(d.other.storage, "check", "--repair") }},
	{name: "check with an empty storage name", status: statusUsage, says: []string{"--storage"},
		args: func(t *testing.T, d *desk) []string { return d.at("", "check") }},
	{name: "claim-storage of a storage that is not mounted", status: 1, says: []string{"is it mounted?"},
		args: func(t *testing.T, d *desk) []string { return d.at(d.make(t, "unmounted"), "claim-storage", "--yes=") }},
	{name: "claim-storage of the wrong storage", status: 1, says: []string{"nothing was changed", "--yes="},
		args: func(t *testing.T, d *desk) []string { return d.at(d.other.storage, "claim-storage") }},
	{name: "an owner file that was edited by hand", status: 1, says: []string{"not an owner file", "claim-storage"},
		args: func(t *testing.T, d *desk) []string {
			if err := os.WriteFile(filepath.Join(d.storage, bytestore.OwnerName), []byte("this is mine\n"), 0o644); err != nil {
				t.Fatal(err)
			}
			return d.args("remove", "--now", greeting)
		}},
	{name: "remove after the owner file was deleted", status: 1, says: []string{"no owner", "claim-storage"},
		args: func(t *testing.T, d *desk) []string {
			if err := os.Remove(filepath.Join(d.storage, bytestore.OwnerName)); err != nil {
				t.Fatal(err)
			}
			return d.args("remove", "--now", greeting)
		}},
	{name: "import into an unfinished copy of the storage", status: 1, says: []string{"lacks 4 of 5 sampled nars", "claim-storage"},
		args: func(t *testing.T, d *desk) []string {
			return d.at(unfinishedCopy(t, d), "import", "--keep", d.source(t))
		}},
	{name: "storage and database copied to another directory", status: 1, says: []string{"new-identity", "claim-storage --yes="},
		args: func(t *testing.T, d *desk) []string {
			to := d.root + "/cloned"
			if out, err := exec.Command("cp", "-a", d.dir, to).CombinedOutput(); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			return place{to, to + "/index.db", to + "/storage"}.args("remove", "--now", greeting)
		}},

	{name: "copy-storage from a storage that is not mounted", status: 2, says: []string{"no files to copy", "is it mounted?"},
		args: func(t *testing.T, d *desk) []string {
			return place{database: d.database, storage: d.make(t, "unmounted")}.copyArgs(d.make(t, "to"))
		}},
	{name: "copy-storage from an empty name", status: 2, says: []string{"--from"},
		args: func(t *testing.T, d *desk) []string { return place{database: d.database}.copyArgs(d.make(t, "to")) }},
	{name: "convert over the database of another instance", status: 1, says: []string{"index.db"},
		args: func(t *testing.T, d *desk) []string { return []string{"convert", d.database, d.other.database} }},

	{name: "export with the storage of another instance", status: 1, says: []string{"another instance"},
		args: func(t *testing.T, d *desk) []string { return d.at(d.other.storage, "export", d.root+"/out") }},
	{name: "export from a storage that is not mounted", status: 1, says: []string{"0 items exported", "5 failed"},
		args: func(t *testing.T, d *desk) []string {
			succeed(t, d.args("export", d.root+"/out")...)
			return d.at(d.make(t, "unmounted"), "export", d.root+"/out")
		}},
	{name: "export into the storage", status: 1, says: []string{"overlaps with the storage"},
		args: func(t *testing.T, d *desk) []string { return d.args("export", "--adopt", "--delete", d.storage) }},
	{name: "export into the directory above the storage", status: 1, says: []string{"overlaps with", "another directory"},
		args: func(t *testing.T, d *desk) []string { return d.args("export", "--adopt", "--delete", d.dir) }},

	{name: "the dump path is the database", status: 1, says: []string{"the database itself"},
		args: func(t *testing.T, d *desk) []string {
			return []string{"dump", "--database=" + d.database, "--database-dump=" + d.database}
		}},
	{name: "the dump path is the database of another instance", status: 1, says: []string{"is not a dump: name another file"},
		args: func(t *testing.T, d *desk) []string {
			return []string{"dump", "--database=" + d.database, "--database-dump=" + d.other.database}
		}},
	{name: "the dump path is a nar in the storage", status: 1, says: []string{"is not a dump: name another file"},
		args: func(t *testing.T, d *desk) []string {
			return []string{"dump", "--database=" + d.database, "--database-dump=" + d.nar(greeting)}
		}},
	{name: "the dump path is the database of another program", run: func(t *testing.T, d *desk) {
		name := asDatabase(t, d)
		before := read(t, name)
		d.runSlip(t, []string{"dump", "--database=" + d.database, "--database-dump=" + name}, 1, "is not a dump: name another file")
		if read(t, name) != before {
			t.Error("it was overwritten")
		}
	}},
	{name: "two indexes exchanged by a copied command line", status: 1, says: []string{"another instance"},
		args: func(t *testing.T, d *desk) []string {
			return []string{"remove", "--now", "--database=" + d.other.database, "--storage=" + d.storage, greeting}
		}},
	{name: "minutes as m", status: statusUsage, says: []string{`"10m"`, "10min", "10mo"},
		args: func(*testing.T, *desk) []string {
			return []string{"mirror-status", "--max-lag=10m", "http://127.0.0.1:1"}
		}},
	{name: "criteria with a typo in a plan", status: statusUsage, says: []string{"no-tag=KEY=VALUE"},
		args: func(t *testing.T, d *desk) []string {
			return d.args("plan-removal", "--storage-limit=1T", "--storage-nar-removal-criteria=no-tag=kep")
		}},
}

// unfinishedCopy makes a storage with one of the nars.
func unfinishedCopy(t *testing.T, d *desk) string {
	t.Helper()
	copied := d.make(t, "copied")
	if err := errors.Join(os.MkdirAll(copied+"/nar/lzip", 0o755), os.Link(d.nar(greeting), copied+"/nar/lzip/"+greeting)); err != nil {
		t.Fatal(err)
	}
	return copied
}
