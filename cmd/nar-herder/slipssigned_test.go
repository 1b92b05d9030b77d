package main

import (
	"os"
	"path/filepath"
	"testing"
)

// unsignedCopy makes a directory with an unsigned narinfo of an item.
func (d *desk) unsignedCopy(t *testing.T, base string) string {
	t.Helper()
	dir := d.make(t, "unsigned")
	if err := os.WriteFile(filepath.Join(dir, narinfoName(base)), []byte(unsigned(read(t, published(base)))), 0o644); err != nil {
		t.Fatal(err)
	}
	return dir
}

// key makes a pair of keys, and returns the private one.
func (d *desk) key(t *testing.T) string {
	t.Helper()
	private := filepath.Join(d.make(t, "keys"), "signing-key.sec")
	succeed(t, "keygen", private)
	return private
}

// signSlips are slips with keys and signatures.
var signSlips = []slip{
	{name: "sign all items, although they have signatures", status: 1, says: []string{"0 narinfos signed", "5 not signed", "--replace"},
		args: func(t *testing.T, d *desk) []string {
			return []string{"sign", "--database=" + d.database, "--key=" + d.key(t), "--all"}
		}},
	{name: "sign with a typo in the tag", says: []string{"0 narinfos signed"},
		args: func(t *testing.T, d *desk) []string {
			return []string{"sign", "--database=" + d.database, "--key=" + d.key(t), "--replace", "--tag=kind=goood"}
		}},
	{name: "sign with a typo in the item", status: 1, says: []string{typo[:32], "not in the index", "0 narinfos signed"},
		args: func(t *testing.T, d *desk) []string {
			return []string{"sign", "--database=" + d.database, "--key=" + d.key(t), "--replace", typo}
		}},
	{name: "sign with a file that is not there", status: 1, says: []string{"no such file or directory"},
		args: func(t *testing.T, d *desk) []string {
			return []string{"sign", "--database=" + d.database, "--key=" + d.key(t), "--replace", d.root + "/absent.narinfo"}
		}},
	{name: "sign with nothing named", status: statusUsage, says: []string{"--all"},
		args: func(t *testing.T, d *desk) []string {
			return []string{"sign", "--database=" + d.database, "--key=" + d.key(t), "--replace"}
		}},
	{name: "sign with a variable that is not set", status: statusUsage, says: []string{"empty"},
		args: func(t *testing.T, d *desk) []string {
			return []string{"sign", "--database=" + d.database, "--key=" + d.key(t), "--replace", ""}
		}},
	{name: "sign with a key in a variable that is not set", status: statusUsage, says: []string{"--key", "empty"},
		args: func(t *testing.T, d *desk) []string {
			return []string{"sign", "--database=" + d.database, "--key=", "--replace", "--all"}
		}},
	{name: "sign with the public key", status: 1, says: []string{"--key", "signing-key.pub", "this is a public key"},
		args: func(t *testing.T, d *desk) []string {
			d.key(t)
			return []string{"sign", "--database=" + d.database, "--key=" + d.root + "/keys/signing-key.pub", "--replace", "--all"}
		}},
	{name: "sign with a key that others can read", status: 1, says: []string{"chmod 600"},
		args: func(t *testing.T, d *desk) []string {
			key := d.key(t)
			if err := os.Chmod(key, 0o644); err != nil {
				t.Fatal(err)
			}
			return []string{"sign", "--database=" + d.database, "--key=" + key, "--replace", "--all"}
		}},
	{name: "sign a path with a typo as if it was a file", status: statusUsage, says: []string{"not a store item"},
		args: func(t *testing.T, d *desk) []string {
			return []string{"sign", "--database=" + d.database, "--key=" + d.key(t), "--replace", "/gnu/store/greet"}
		}},
	{name: "import with a key in a variable that is not set", status: statusUsage, says: []string{"--sign-with", "empty"},
		args: func(t *testing.T, d *desk) []string {
			return d.args("import", "--keep", "--sign-with=", d.unsignedCopy(t, greeting))
		}},
	{name: "import of the unsigned narinfo of a signed item", says: []string{"1 known"},
		args: func(t *testing.T, d *desk) []string { return d.args("import", "--keep", d.unsignedCopy(t, greeting)) }},
	{name: "import and sign the unsigned narinfo of an item that another key has signed", says: []string{"1 known"},
		args: func(t *testing.T, d *desk) []string {
			return d.args("import", "--keep", "--sign-with="+d.key(t), d.unsignedCopy(t, greeting))
		}},
	{name: "keygen over a key", status: 1, says: []string{"exists", "no key was written"},
		args: func(t *testing.T, d *desk) []string { return []string{"keygen", d.key(t)} }},
	{name: "keygen over the database", status: 1, says: []string{"exists", "no key was written"},
		args: func(t *testing.T, d *desk) []string { return []string{"keygen", d.database} }},
	{name: "keygen with the files in the wrong order", status: statusUsage, says: []string{"named like a public key"},
		args: func(t *testing.T, d *desk) []string {
			return []string{"keygen", d.root + "/key.pub", d.root + "/key.sec"}
		}},
	{name: "verify with a typo in the item", status: 2, says: []string{"not in the index"},
		args: func(t *testing.T, d *desk) []string { return d.args("verify", typo) }},
	{name: "verify of a directory without narinfos", status: 2, says: []string{"no narinfos found"},
		args: func(t *testing.T, d *desk) []string { return []string{"verify", d.storage} }},
	{name: "verify with the keys of another server", status: 1, says: []string{"NOT AUTHORIZED"},
		args: func(t *testing.T, d *desk) []string {
			return d.args("verify", "--authorized-key="+testdata+"/production/ci.guix.gnu.org.pub", greeting)
		}},
}
