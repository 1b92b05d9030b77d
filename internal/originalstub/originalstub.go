// Package originalstub is a server for tests that imitates the original Nar Herder behind
// nginx: it serves narinfos, nars, a dump of its database, and recent changes by their times.
package originalstub

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"nar-herder/narinfo"
)

// timeLayout is the original's format of times, in UTC.
const timeLayout = "2006-01-02 15:04:05"

// Server is an instance of the original that keeps its narinfos in memory.
type Server struct {
	// URL is its address on loopback, without a slash at the end.
	URL string

	now    func() time.Time
	server *httptest.Server

	mu      sync.Mutex
	items   []*item // in the order of addition
	changes []change
	lastID  int64
	dump    string // the file; "" for none
	asked   map[string]int
}

type item struct {
	id      int64
	narinfo *narinfo.Narinfo
	addedAt string
	files   []string // local files in the narinfo's order; "" for one that is not stored
	tags    [][2]string
}

// change is a change as the original sends it.
type change struct {
	id       int64
	Datetime string `json:"datetime"`
	Change   string `json:"change"`
	Data     string `json:"data"`
}

// New starts a server without items. now is the clock for changes; nil is the system's.
func New(now func() time.Time) *Server {
	if now == nil {
		now = time.Now
	}
	s := &Server{now: now, asked: make(map[string]int)}
	s.server = httptest.NewServer(http.HandlerFunc(s.serve))
	s.URL = s.server.URL
	return s
}

// Close stops the server after the current requests.
func (s *Server) Close() { s.server.Close() }

// Add adds or replaces an item, and logs an addition. files are the nars in the order of the
// narinfo's URLs; missing ones, and "", are not stored.
func (s *Server) Add(text []byte, files ...string) error {
	n, err := narinfo.Parse(text)
	if err != nil {
		return err
	}
	if len(files) > len(n.Files) {
		return fmt.Errorf("add %s: got %d files, its narinfo names %d", n.StorePath, len(files), len(n.Files))
	}
	for len(files) < len(n.Files) {
		files = append(files, "")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if i := s.find(n.StorePath.Hash); i >= 0 {
		s.items = slices.Delete(s.items, i, i+1)
	}
	s.lastID++
	s.items = append(s.items, &item{id: s.lastID, narinfo: n, addedAt: s.time(), files: files})
	s.log("addition", string(n.Text))
	return nil
}

// Tag tags an item by its store path, without logging a change.
func (s *Server) Tag(path, key, value string) error {
	i, err := s.known(path)
	if err != nil {
		return err
	}
	defer s.mu.Unlock()
	s.items[i].tags = append(s.items[i].tags, [2]string{key, value})
	return nil
}

// Remove removes an item by its store path, and logs a removal.
func (s *Server) Remove(path string) error {
	i, err := s.known(path)
	if err != nil {
		return err
	}
	defer s.mu.Unlock()
	s.items = slices.Delete(s.items, i, i+1)
	s.log("removal", path)
	return nil
}

// TrimChanges removes older changes from the log.
func (s *Server) TrimChanges(before time.Time) {
	oldest := before.UTC().Format(timeLayout)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.changes = slices.DeleteFunc(s.changes, func(c change) bool { return c.Datetime < oldest })
}

// Asked returns the number of requests for paths with the prefix.
func (s *Server) Asked(prefix string) (count int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for path, times := range s.asked {
		if strings.HasPrefix(path, prefix) {
			count += times
		}
	}
	return count
}

// known finds an item, and returns with the lock held unless it fails.
func (s *Server) known(path string) (int, error) {
	p, err := narinfo.ParseStorePath(path)
	if err != nil {
		return 0, err
	}
	s.mu.Lock()
	i := s.find(p.Hash)
	if i < 0 {
		s.mu.Unlock()
		return 0, fmt.Errorf("%s is not known", path)
	}
	return i, nil
}

// find returns the index of an item, or -1.
func (s *Server) find(hash narinfo.PathHash) int {
	return slices.IndexFunc(s.items, func(i *item) bool { return i.narinfo.StorePath.Hash == hash })
}

func (s *Server) time() string { return s.now().UTC().Format(timeLayout) }

func (s *Server) log(kind, data string) {
	s.lastID++
	s.changes = append(s.changes, change{s.lastID, s.time(), kind, data})
}

func (s *Server) serve(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	s.asked[r.URL.Path]++
	s.mu.Unlock()
	path := strings.TrimPrefix(r.URL.Path, "/")
	switch {
	case r.Method != http.MethodGet && r.Method != http.MethodHead:
		http.NotFound(w, r)
	case path == "latest-database-dump":
		s.mu.Lock()
		dump := s.dump
		s.mu.Unlock()
		serveFile(w, r, dump)
	case path == "recent-changes":
		s.serveChanges(w, r)
	case strings.HasPrefix(path, "nar/"):
		s.mu.Lock()
		file := s.fileAt(path)
		s.mu.Unlock()
		serveFile(w, r, file)
	case strings.HasSuffix(path, ".narinfo"):
		s.serveItem(w, r, strings.TrimSuffix(path, ".narinfo"), false)
	case strings.HasSuffix(path, ".narinfo/info"):
		s.serveItem(w, r, strings.TrimSuffix(path, ".narinfo/info"), true)
	default:
		http.NotFound(w, r)
	}
}

// serveChanges compares times as texts, as the original's SQL does. It ignores parameters
// other than since.
func (s *Server) serveChanges(w http.ResponseWriter, r *http.Request) {
	since := r.URL.Query().Get("since")
	s.mu.Lock()
	found := make([]change, 0, len(s.changes))
	for _, c := range s.changes {
		if c.Datetime >= since {
			found = append(found, c)
		}
	}
	s.mu.Unlock()
	slices.SortStableFunc(found, func(a, b change) int { return strings.Compare(a.Datetime, b.Datetime) })
	body, err := json.Marshal(map[string][]change{"recent_changes": found})
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	write(w, body)
}

func (s *Server) serveItem(w http.ResponseWriter, r *http.Request, name string, info bool) {
	hash, err := narinfo.ParsePathHash(name)
	s.mu.Lock()
	defer s.mu.Unlock()
	i := -1
	if err == nil {
		i = s.find(hash)
	}
	switch {
	case i < 0:
		http.NotFound(w, r)
	case info:
		stored := !slices.Contains(s.items[i].files, "")
		w.Header().Set("Content-Type", "application/json")
		write(w, fmt.Appendf(nil, `{"stored":%v}`, stored))
	default:
		w.Header().Set("Content-Type", "text/plain")
		write(w, s.items[i].narinfo.Text)
	}
}

func write(w http.ResponseWriter, body []byte) {
	w.Header().Set("Content-Length", fmt.Sprint(len(body)))
	_, _ = w.Write(body) // the client may have left
}

// fileAt returns the file of a decoded path, or "".
func (s *Server) fileAt(path string) string {
	for _, item := range s.items {
		for i, file := range item.narinfo.Files {
			if name, err := file.Path(); err == nil && name == path {
				return item.files[i]
			}
		}
	}
	return ""
}

// serveFile sends a file as nginx does.
func serveFile(w http.ResponseWriter, r *http.Request, name string) {
	if name == "" {
		http.NotFound(w, r)
		return
	}
	file, err := os.Open(name)
	if err == nil {
		defer file.Close()
	}
	var stat fs.FileInfo
	if err == nil {
		stat, err = file.Stat()
	}
	if errors.Is(err, fs.ErrNotExist) {
		http.NotFound(w, r)
		return
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("ETag", fmt.Sprintf(`"%x-%x"`, stat.ModTime().Unix(), stat.Size()))
	http.ServeContent(w, r, "", stat.ModTime(), file)
}
