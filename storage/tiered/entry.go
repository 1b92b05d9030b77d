package tiered

import (
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"nar-herder/narinfo"
	"nar-herder/storage/bytestore"
)

// key is a hash of a name, which may be too long for a file name.
type key [20]byte

func keyOf(name string) (k key) {
	sum := sha256.Sum256([]byte(name))
	copy(k[:], sum[:])
	return k
}

// content is the part of [bytestore.Info] that a copy's file name records.
type content struct {
	size    int64
	modTime int64 // nanoseconds since 1970
	usage   int64
	tag     string
	sum     [16]byte
}

// longestTag limits the length of a tag in a file name.
const longestTag = 100

// contentOf returns the content of an info; false if a file name can't represent it.
func contentOf(info bytestore.Info) (content, bool) {
	c := content{size: info.Size, modTime: info.ModTime.UnixNano(), usage: info.Usage, tag: info.Tag, sum: info.Sum}
	return c, info.Size >= 0 && info.Usage >= 0 && len(info.Tag) <= longestTag && time.Unix(0, c.modTime).Equal(info.ModTime)
}

func (c *content) info(name string) bytestore.Info {
	return bytestore.Info{Name: name, Size: c.size, Usage: c.usage, ModTime: time.Unix(0, c.modTime), Tag: c.tag, Sum: c.sum}
}

// sameContent reports whether the infos are of the same content. Usage may differ.
func sameContent(a, b bytestore.Info) bool {
	return a.Size == b.Size && a.ModTime.Equal(b.ModTime) && a.Tag == b.Tag && a.Sum == b.Sum
}

// entry is a copy, complete or being fetched. The mutex of Tiered guards its fields.
type entry struct {
	key key
	// checked is when it was compared with the store, and touched when the file's time
	// was set; in seconds since New.
	checked, touched int32
	// users counts readers, fill and check. An entry without users is idle.
	users int32
	// kept is true if the file has its final name, and dropped if the entry was removed
	// from the map.
	kept, dropped bool
	content       content // set before the first Read
	taken         int64   // disk space
	*live                 // nil while it is idle
	before, after *entry  // in the list of idle entries
}

// live is the state of an entry with users.
type live struct {
	file  *os.File // nil before the first Read
	fill  *fill    // while it is being fetched
	check *check   // while it is being revalidated
}

// never is a time before all others.
const never = math.MinInt32 / 2

// seconds converts a time to seconds since New.
func (t *Tiered) seconds(at time.Time) int32 {
	return int32(max(never, min(at.Sub(t.began)/time.Second, math.MaxInt32)))
}

// order is a ring of the idle entries by their last use.
type order struct{ root entry }

func (o *order) init() { o.root.before, o.root.after = &o.root, &o.root }

// oldest returns the least recently used entry, or nil.
func (o *order) oldest() *entry {
	if o.root.before == &o.root {
		return nil
	}
	return o.root.before
}

func (o *order) addNewest(e *entry) {
	e.before, e.after = &o.root, o.root.after
	e.before.after, e.after.before = e, e
}

func (o *order) remove(e *entry) {
	e.before.after, e.after.before = e.after, e.before
	e.before, e.after = nil, nil
}

// path returns the path of a copy.
func (t *Tiered) path(e *entry) string {
	path := make([]byte, 0, 256)
	path = append(append(path, t.directory...), "/xx/"...)
	start := len(path)
	path = appendFileName(path, e.key, &e.content)
	copy(path[start-3:], path[start:start+2])
	return string(path)
}

func (t *Tiered) filling() string { return filepath.Join(t.directory, "filling") }

// appendFileName appends the file name of a copy: KEY-SIZE-MODTIME-USAGE-TAG, and .SUM if
// that is known.
func appendFileName(name []byte, k key, c *content) []byte {
	name = narinfo.AppendBase32(name, k[:])
	for _, number := range [...]uint64{uint64(c.size), uint64(c.modTime), uint64(c.usage)} {
		name = strconv.AppendUint(append(name, '-'), number, 16)
	}
	name = base64.RawURLEncoding.AppendEncode(append(name, '-'), []byte(c.tag))
	if c.sum != [16]byte{} {
		name = narinfo.AppendBase32(append(name, '.'), c.sum[:])
	}
	return name
}

// parseFileName is the inverse of appendFileName; false for other names.
func parseFileName(name string) (k key, c content, ok bool) {
	parts := strings.SplitN(name, "-", 5)
	if len(parts) != 5 {
		return k, c, false
	}
	if err := narinfo.DecodeBase32(k[:], parts[0]); err != nil {
		return k, c, false
	}
	var numbers [3]uint64
	for i := range numbers {
		var err error
		if numbers[i], err = strconv.ParseUint(parts[1+i], 16, 64); err != nil {
			return k, c, false
		}
	}
	encoded, sum, summed := strings.Cut(parts[4], ".")
	tag, err := base64.RawURLEncoding.DecodeString(encoded)
	c = content{size: int64(numbers[0]), modTime: int64(numbers[1]), usage: int64(numbers[2]), tag: string(tag)}
	if err == nil && summed {
		err = narinfo.DecodeBase32(c.sum[:], sum)
	}
	return k, c, err == nil && c.size >= 0 && c.usage >= 0 && string(appendFileName(nil, k, &c)) == name
}

// use adds a user of the entry. The mutex is held.
func (t *Tiered) use(e *entry) {
	if e.users++; e.users == 1 {
		t.idle.remove(e)
		e.live = new(live)
	}
}

// leave removes a user of the entry.
func (t *Tiered) leave(e *entry) {
	t.mu.Lock()
	e.users--
	switch {
	case e.users == 0:
		file, dropped, f := e.file, e.dropped, e.fill
		e.live = nil
		if !dropped {
			t.idle.addNewest(e)
		}
		t.mu.Unlock()
		if file != nil {
			_ = file.Close() // read-only, or flushed
		}
		if f != nil {
			if passed, _ := f.takePassed(); passed != nil {
				passed.Close() // the reader that began the fill has left
			}
		}
		if dropped {
			t.release(e)
		}
		return
	case e.users == 1 && e.fill != nil && !e.fill.over && (e.dropped || !e.fill.begun.Load()):
		// Only the fill is left, and it has no readers.
		t.forget(e)
		e.fill.cancel(errUnwanted)
	}
	t.mu.Unlock()
}

// release subtracts the disk space of a removed file.
func (t *Tiered) release(e *entry) {
	t.mu.Lock()
	t.taken -= e.taken
	e.taken = 0
	t.mu.Unlock()
}

// forget removes the entry from the map. The mutex is held.
func (t *Tiered) forget(e *entry) {
	if !e.dropped {
		e.dropped = true
		delete(t.entries, e.key)
	}
}

// dropName drops the copy of a name.
func (t *Tiered) dropName(name string) {
	t.mu.Lock()
	e := t.entries[keyOf(name)]
	if e != nil {
		t.use(e)
	}
	t.mu.Unlock()
	if e != nil {
		t.drop(e)
		t.leave(e)
	}
}

// drop removes the copy. The caller must be a user; other readers can finish.
func (t *Tiered) drop(e *entry) {
	t.mu.Lock()
	remove := e.kept && !e.dropped
	t.forget(e)
	t.mu.Unlock()
	if !remove {
		return // it has no final name yet, or was dropped already
	}
	if err := os.Remove(t.path(e)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		// It still uses space. The next start will find and revalidate it.
		t.mu.Lock()
		t.taken += e.taken
		t.mu.Unlock()
		t.trouble(err)
	}
}

// Invalidate implements [bytestore.Store]: the next Open revalidates the copy.
func (t *Tiered) Invalidate(name string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if e := t.entries[keyOf(name)]; e != nil {
		e.checked = never
	}
	return true
}

// makeRoom reserves space, and evicts the least recently used copies if necessary. It
// returns false if there is not enough space.
func (t *Tiered) makeRoom(need int64) bool {
	t.making.Lock()
	defer t.making.Unlock()
	for {
		t.mu.Lock()
		fits := t.taken+need <= t.max
		if fits {
			t.taken += need
		}
		t.mu.Unlock()
		if fits {
			return true
		}
		if t.evict() < 0 {
			return false
		}
	}
}

// evict removes the least recently used copy, and returns the disk space that it used; -1
// if no copy can be removed. The mutex making is held.
func (t *Tiered) evict() int64 {
	t.mu.Lock()
	e := t.idle.oldest()
	if e == nil {
		t.mu.Unlock()
		return -1
	}
	t.use(e) // so that nobody else removes it
	taken := e.taken
	t.mu.Unlock()
	defer t.leave(e)
	if err := os.Remove(t.path(e)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.trouble(err)
		return -1
	}
	t.mu.Lock()
	t.forget(e)
	t.mu.Unlock()
	t.metrics.evictions.Add(1)
	return taken
}

// blocksOf returns the disk space of a file.
func blocksOf(stat *unix.Stat_t) int64 { return stat.Blocks * 512 }
