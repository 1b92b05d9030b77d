package search

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"nar-herder/narinfo"
	"nar-herder/storage/index"
)

// ErrCursor means that the position in the results is malformed.
var ErrCursor = errors.New("invalid position in the results")

const (
	// MaxLimit is the largest number of results of a search.
	MaxLimit = 1000
	// mostPasses bounds the passes over all names that a search makes if it finds removed items.
	mostPasses = 3
)

// Match is an item that matches a query.
type Match struct {
	*index.Item
	Narinfo *narinfo.Narinfo
}

// Result is a page of results.
type Result struct {
	// Items are the best first.
	Items []Match
	// Total is the number of matching items. It includes removed and withdrawn ones, for as long
	// as the index has them.
	Total int64
	// Next is the position of the next page, "" after the last one.
	Next  string
	State State
}

// Search returns up to limit items that match a query and have narinfos that clients can get.
// Results begin after the position, which is [Result.Next] of another search or "". Positions
// stay valid while items are added and removed.
//
// The order is: packages with the name of the query or its first word; names that begin with the
// first word; other names; hashes. Among these, packages with shorter names are first, then higher
// versions, then newer items.
//
// The error is [ErrCursor], that of the context, or of the database.
func (s *Index) Search(ctx context.Context, query Query, after string, limit int) (Result, error) {
	from, err := parsePosition(&query, after)
	if err != nil {
		return Result{}, err
	}
	limit = min(max(limit, 1), MaxLimit)
	result := Result{State: s.State()}
	if query.exact {
		return s.searchHash(ctx, query.hash, result)
	}
	if query.IsEmpty() {
		return result, nil
	}
	var last position
	for pass := range mostPasses {
		found, err := s.find(ctx, &query, from, limit)
		if err != nil {
			return Result{}, err
		}
		if pass == 0 {
			result.Total = found.total
		}
		if from != nil {
			last = *from
		}
		last, err = s.visible(ctx, &query, found.items, &result, limit, last)
		if err != nil {
			return Result{}, err
		}
		if len(result.Items) > limit {
			// The surplus item only shows that there is another page.
			result.Items = result.Items[:limit]
			result.Next = last.String()
			return result, nil
		}
		if !found.more || len(found.items) == 0 {
			result.Next = ""
			return result, nil
		}
		from = new(last)
		result.Next = last.String() // in case this is the last pass
	}
	return result, nil
}

// searchHash adds the item with a hash, if there is one.
func (s *Index) searchHash(ctx context.Context, hash narinfo.PathHash, result Result) (Result, error) {
	item, err := s.index.Item(ctx, hash)
	if err == nil && item.WithdrawnAt.IsZero() {
		_, err = s.index.Text(ctx, hash)
	}
	if errors.Is(err, index.ErrNotFound) || errors.Is(err, index.ErrLost) || err == nil && !item.WithdrawnAt.IsZero() {
		return result, nil
	} else if err != nil {
		return Result{}, err
	}
	n, err := narinfo.Parse(item.Text)
	if err != nil {
		return Result{}, fmt.Errorf("the narinfo of %s in the database: %w", hash, err)
	}
	result.Items, result.Total = []Match{{item, n}}, 1
	return result, nil
}

// visible adds the items that clients can get to the result, up to one more than limit. It returns
// the position of the last item before that one, or else of the last item of all. last is the
// position before the items.
func (s *Index) visible(ctx context.Context, query *Query, items []hit, result *Result, limit int, last position) (position, error) {
	for step := range slices.Chunk(items, limit+1) {
		positions := make([]int64, len(step))
		for i, item := range step {
			positions[i] = item.item
		}
		rows, err := s.index.ItemsByPosition(ctx, positions)
		if err != nil {
			return last, err
		}
		for i, row := range rows {
			if row != nil {
				n, err := narinfo.Parse(row.Text)
				if err != nil {
					continue // the check of the index reports it
				}
				if lower(n.StorePath.Name) != string(step[i].name) {
					s.damaged.Store(true)
					continue
				}
				if step[i].class != isHash || strings.HasPrefix(row.Hash.String(), query.start) {
					if result.Items = append(result.Items, Match{row, n}); len(result.Items) > limit {
						return last, nil
					}
				}
			}
			last = step[i].position
		}
	}
	return last, nil
}

// position is a place in the results: after the item of a name.
type position struct {
	class int
	name  []byte
	item  int64 // its position in the database
}

// String is for [Result.Next]. A name has no characters that are special in URLs, except "+",
// "=" and "?".
func (p position) String() string { return strconv.FormatInt(p.item, 10) + "." + string(p.name) }

func parsePosition(query *Query, text string) (*position, error) {
	if text == "" {
		return nil, nil
	}
	number, name, _ := strings.Cut(text, ".")
	item, err := strconv.ParseInt(number, 10, 64)
	if err != nil || item < 0 || name == "" || len(name) > narinfo.MaxNameLen || lower(name) != name {
		return nil, fmt.Errorf("%w: %.40q", ErrCursor, text)
	}
	p := &position{class: isHash, name: []byte(name), item: item}
	if class, does := query.matches(p.name); does {
		p.class = class
	}
	return p, nil
}

// hit is an item that the index has found.
type hit struct{ position }

// candidate is a name among the best, with the items in one block or in memory.
type candidate struct {
	class    int
	name     []byte
	block    int // recently for those in memory
	entry    entry
	postings []posting // of a candidate without a block or of class isHash, the newest first
	count    int
}

// recently comes before all blocks: its items are newer.
const recently = -1

func (c *candidate) compare(o *candidate) int {
	return cmp.Or(c.compareName(o.class, o.name), cmp.Compare(c.block, o.block))
}

// compareName compares the class and the name of a candidate with others.
func (c *candidate) compareName(class int, name []byte) int {
	if order := cmp.Compare(c.class, class); order != 0 {
		return order
	}
	return compareNames(c.name, name)
}

// finder collects the best names.
type finder struct {
	query *Query
	from  *position
	need  int // items
	best  []candidate
	sum   int  // of their items, except those of the name at from
	more  bool // names were dropped
	total int64
	// The start of hashes, shifted like those of postings.
	start uint64
	shift int
}

// found are the best items, in order.
type found struct {
	items []hit
	more  bool // others follow
	total int64
}

// find returns the best items after a position: limit and as many more that may have been removed,
// if there are so many.
func (s *Index) find(ctx context.Context, query *Query, from *position, limit int) (found, error) {
	if err := ctx.Err(); err != nil {
		return found{}, err
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	f := &finder{query: query, from: from, need: limit + limit/4 + 2}
	if query.start != "" {
		length := min(len(query.start), 8)
		hash, err := narinfo.ParsePathHash(padded(query.start))
		if err != nil {
			return found{}, err
		}
		f.shift = 5 * (8 - length)
		f.start = hashStart(hash) >> f.shift
	}
	s.findRecent(f)
	if s.table != nil {
		if err := f.table(ctx, s.table); err != nil {
			return s.broken(err)
		}
	}
	items, err := f.items(s.table)
	if err != nil {
		return s.broken(err)
	}
	return found{items: items, more: f.more, total: f.total}, nil
}

// broken makes Run replace a damaged file. Until then, searches find nothing.
func (s *Index) broken(err error) (found, error) {
	if errors.Is(err, errDamaged) {
		s.damaged.Store(true)
		s.complete.Store(false)
		return found{}, nil
	}
	return found{}, err
}

// findRecent looks at the names in memory.
func (s *Index) findRecent(f *finder) {
	newestFirst := func(n *recentName) []posting {
		postings := slices.Clone(n.postings)
		slices.Reverse(postings)
		return postings
	}
	var name []byte
	for i := range s.recent.names {
		n := &s.recent.names[i]
		name = append(name[:0], n.name...)
		if class, does := f.query.matches(name); does {
			c := candidate{class: class, name: name, block: recently, count: len(n.postings)}
			if f.isAmong(&c) {
				c.name, c.postings = bytes.Clone(name), newestFirst(n)
				f.insert(c)
			}
		} else if f.query.start != "" {
			f.addHashes(name, recently, newestFirst(n))
		}
	}
}

// table looks at the names in a file.
func (f *finder) table(ctx context.Context, t *table) error {
	var buffer []byte
	var unpacked []posting
	var c candidate // one for all names, as most are not among the best
	for number := range t.meta.Blocks {
		if err := ctx.Err(); err != nil {
			return err
		}
		var e entries
		var err error
		if e.text, e.counts, err = t.keepNames(number); err != nil {
			return err
		}
		if f.query.start != "" {
			if buffer, err = t.postings(number, buffer); err != nil {
				return err
			}
		} else if !bytes.Contains(e.text, f.query.words[0]) {
			continue
		}
		for {
			more, err := e.next()
			if err != nil {
				return err
			}
			if !more {
				break
			}
			if class, does := f.query.matches(e.name); does {
				c.class, c.name, c.block, c.count = class, e.name, number, e.count
				if f.isAmong(&c) {
					c.name, c.entry = bytes.Clone(c.name), e.entry
					f.insert(c)
				}
			} else if f.query.start != "" && e.hasStart(f.start, f.shift, buffer) {
				if unpacked, err = e.unpack(unpacked[:0], buffer); err != nil {
					return err
				}
				f.addHashes(e.name, number, unpacked)
			}
		}
	}
	return nil
}

// addHashes adds the items with the start of the hash.
func (f *finder) addHashes(name []byte, block int, postings []posting) {
	c := candidate{class: isHash, block: block}
	for _, p := range postings {
		if p.start>>f.shift == f.start {
			c.postings = append(c.postings, p)
		}
	}
	if c.count = len(c.postings); c.count > 0 {
		c.name = bytes.Clone(name)
		if f.isAmong(&c) {
			f.insert(c)
		}
	}
}

// isAmong counts a candidate, and reports whether it is among the best so far.
func (f *finder) isAmong(c *candidate) bool {
	f.total += int64(c.count)
	if f.from != nil && f.compareFrom(c) < 0 {
		return false
	}
	if f.sum < f.need {
		return true
	}
	// Most names of a common word end here.
	if c.compare(&f.best[len(f.best)-1]) > 0 {
		f.more = true
		return false
	}
	return true
}

// compareFrom compares a candidate with the position where the results begin. It is 0 if some of
// the candidate's items may be after that.
func (f *finder) compareFrom(c *candidate) int { return c.compareName(f.from.class, f.from.name) }

// insert adds a candidate to the best, and drops those that are not needed any more.
func (f *finder) insert(c candidate) {
	i, _ := slices.BinarySearchFunc(f.best, c, func(a, b candidate) int { return a.compare(&b) })
	f.best = slices.Insert(f.best, i, c)
	f.sum += f.counted(&c)
	for last := &f.best[len(f.best)-1]; f.counted(last) > 0 && f.sum-f.counted(last) >= f.need; last = &f.best[len(f.best)-1] {
		f.sum -= f.counted(last)
		f.best = f.best[:len(f.best)-1]
		f.more = true
	}
}

// counted returns how many items of a candidate are certainly after the position.
func (f *finder) counted(c *candidate) int {
	if f.from != nil && f.compareFrom(c) == 0 {
		return 0
	}
	return c.count
}

// items returns the items of the best names.
func (f *finder) items(t *table) (items []hit, err error) {
	var buffer []byte
	var unpacked []posting
	read := recently
	for i := range f.best {
		c := &f.best[i]
		postings := c.postings
		if postings == nil {
			if read != c.block {
				if buffer, err = t.postings(c.block, buffer); err != nil {
					return nil, err
				}
				read = c.block
			}
			if unpacked, err = c.entry.unpack(unpacked[:0], buffer); err != nil {
				return nil, err
			}
			postings = unpacked
		}
		isFrom := f.from != nil && f.compareFrom(c) == 0
		for _, p := range postings {
			if isFrom && p.position >= f.from.item {
				continue
			}
			if len(items) >= f.need {
				f.more = true
				return items, nil
			}
			items = append(items, hit{position{c.class, c.name, p.position}})
		}
	}
	return items, nil
}
