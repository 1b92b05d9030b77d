// Package owner decides which instance may write to a storage: the one in the storage's
// owner file. All others may only read it.
package owner

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"nar-herder/storage"
	"nar-herder/storage/bytestore"
)

// Owner is an instance and the location of its database. Two databases with the same
// instance id are copies, and only one of them may write.
type Owner struct {
	// Instance is the random id in the database.
	Instance string `json:"instance"`
	// Host is the machine's host name, for messages. Machine identifies the machine; it
	// is "" if unknown, as in most containers.
	Host    string `json:"host,omitempty"`
	Machine string `json:"machine,omitempty"`
	// Database is the absolute path of the database; "" in files of earlier versions.
	Database string    `json:"database,omitempty"`
	Since    time.Time `json:"since,omitzero"`
}

// Self describes the instance with this id and database.
func Self(instance, database string) Owner {
	database = resolve(database)
	host, _ := os.Hostname()
	return Owner{Instance: instance, Host: host, Machine: machine(), Database: database, Since: time.Now().UTC().Truncate(time.Second)}
}

// resolve returns the absolute path of a file without symbolic links, as SQLite opens or
// creates it. The file need not exist.
func resolve(path string) string {
	if absolute, err := filepath.Abs(path); err == nil {
		path = absolute
	}
	for range 40 { // links, as many as Linux follows
		if directory, err := filepath.EvalSymlinks(filepath.Dir(path)); err == nil {
			path = filepath.Join(directory, filepath.Base(path))
		}
		target, err := os.Readlink(path)
		if err != nil {
			break
		}
		if !filepath.IsAbs(target) {
			target = filepath.Join(filepath.Dir(path), target)
		}
		path = target
	}
	return path
}

// machine returns a hash of /etc/machine-id, which itself is confidential; see
// machine-id(5).
func machine() string {
	id, _ := os.ReadFile("/etc/machine-id") // empty if it doesn't exist
	return derive(string(id))
}

func derive(id string) string {
	id = strings.TrimSpace(id)
	if len(id) != 32 {
		return ""
	}
	mac := hmac.New(sha256.New, []byte(id))
	mac.Write([]byte("nar-herder"))
	return hex.EncodeToString(mac.Sum(nil)[:16])
}

// String describes an owner in messages.
func (o Owner) String() string {
	if o.Instance == "" {
		return "no instance"
	}
	if o.Database == "" {
		return "instance " + o.Instance
	}
	return fmt.Sprintf("instance %s (database %s on host %s, since %s)", o.Instance, o.Database, o.Host, o.Since.Format(time.RFC3339))
}

// IsAt reports whether both databases are the same file, as far as is known. A file may
// have two names, for example if a directory is mounted twice.
func (o Owner) IsAt(other Owner) bool {
	if o.Machine != "" && other.Machine != "" && o.Machine != other.Machine {
		return false
	}
	a, errA := os.Stat(o.Database)
	b, errB := os.Stat(other.Database)
	return o.Database == "" || o.Database == other.Database || errA == nil && errB == nil && os.SameFile(a, b)
}

// parse parses an owner file. Earlier versions wrote only the instance id.
func parse(text string) (o Owner, err error) {
	if !strings.ContainsAny(text, "{ \t\n") {
		return Owner{Instance: text}, nil
	}
	if err = json.Unmarshal([]byte(text), &o); err == nil && o.Instance == "" {
		err = errors.New("it has no instance id")
	}
	return o, err
}

// Read returns the owner of a byte store. The error is [fs.ErrNotExist] if it has none.
func Read(ctx context.Context, store bytestore.Store) (Owner, error) {
	text, err := bytestore.ReadNote(ctx, store, bytestore.OwnerName)
	if err != nil {
		return Owner{}, err
	}
	o, err := parse(text)
	if err != nil {
		return Owner{}, fmt.Errorf("%s in storage %s is not an owner file: %w: remove it, then run 'nar-herder claim-storage'", bytestore.OwnerName, store, err)
	}
	return o, nil
}

// Take makes an instance the owner of a byte store, replacing any other.
func Take(ctx context.Context, store bytestore.Store, self Owner) error {
	return write(ctx, store, self, bytestore.Staged.Commit)
}

func write(ctx context.Context, store bytestore.Store, self Owner, commit func(bytestore.Staged, context.Context) error) error {
	text, err := json.MarshalIndent(self, "", "  ")
	if err != nil {
		return err
	}
	return bytestore.WriteNote(ctx, store, bytestore.OwnerName, string(text), commit)
}

// Policy determines which storages without an owner an instance may claim.
type Policy int

const (
	// Never is for commands that only read the owner file.
	Never Policy = iota
	// IfEmpty is for mirrors: existing nars belong to another instance.
	IfEmpty
	// Always is for imports, and for servers that don't mirror.
	Always
)

// Claim is an instance's claim to write to a byte store.
type Claim struct {
	Store  bytestore.Store
	Self   Owner
	Policy Policy
	// IsMounted returns an error if the store is not the one of the index; nil for a new
	// index.
	IsMounted func(context.Context) error
}

// Acquire makes the instance the owner of a byte store without one, if the policy allows
// that. Then it is Check.
func (c *Claim) Acquire(ctx context.Context) error {
	found, err := Read(ctx, c.Store)
	switch {
	case c.Policy == Never:
	case errors.Is(err, fs.ErrNotExist):
		if err := c.MayClaim(ctx); err != nil {
			return err
		}
		// If several instances do this at once, one succeeds. Check reports which.
		if err := write(ctx, c.Store, c.Self, bytestore.Staged.CommitNew); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	case found.Instance == c.Self.Instance && found.Database == "": // of an earlier version
		if err := Take(ctx, c.Store, c.Self); err != nil {
			return err
		}
	}
	return c.Check(ctx)
}

// MayClaim returns an error if the policy forbids claiming the store, which has no owner.
func (c *Claim) MayClaim(ctx context.Context) error {
	if c.IsMounted != nil {
		if err := c.IsMounted(ctx); err != nil {
			return err
		}
	}
	if c.Policy == Always {
		return nil
	}
	for info, err := range c.Store.List(ctx) {
		if err != nil && info.Name != "" && info.Name != "nar" && !strings.HasPrefix(info.Name, "nar/") {
			continue // such as lost+found
		}
		if err != nil {
			return fmt.Errorf("check whether storage %s is empty: %w", c.Store, err)
		}
		if !info.Temporary && storage.IsNarName(info.Name) {
			return fmt.Errorf("%w: storage %s has no owner, but contains nars such as %s: to make them this mirror's own, run 'nar-herder claim-storage'; to only read them, start the server with --storage-read-only",
				storage.ErrNotOwner, c.Store, info.Name)
		}
	}
	return nil
}

// Check returns nil if the instance owns the byte store. The error is
// [storage.ErrNotOwner] if it does not; any other error means unknown.
func (c *Claim) Check(ctx context.Context) error {
	found, err := Read(ctx, c.Store)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("storage %s has no owner: is it mounted? An import claims it, and so does 'nar-herder claim-storage'", c.Store)
	case err != nil:
		return fmt.Errorf("read the owner of storage %s: %w", c.Store, err)
	case found.Instance != c.Self.Instance:
		return fmt.Errorf("%w: %s belongs to %s: use that database; to only read the storage, start the server with --storage-read-only; if that instance is gone for good, run 'nar-herder claim-storage --yes=%s'",
			storage.ErrNotOwner, c.Store, found, found.Instance)
	case !found.IsAt(c.Self):
		return fmt.Errorf("%w: %s belongs to %s, and database %s on host %s has the same id: if the database was moved or restored here, and the other is gone for good, or if its container was recreated, run 'nar-herder claim-storage --yes=%s'; if this is a copy, run 'nar-herder new-identity' on it",
			storage.ErrNotOwner, c.Store, found, c.Self.Database, c.Self.Host, found.Instance)
	}
	return nil
}
