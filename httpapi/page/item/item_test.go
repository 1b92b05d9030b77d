package item

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"nar-herder/httpapi/page"
	"nar-herder/narinfo"
	"nar-herder/narinfo/signing"
	"nar-herder/storage"
	"nar-herder/storage/directory"
	"nar-herder/storage/index"
)

const corpus = "../../../testdata"

// server is a storage of a test, with its pages.
type server struct {
	*storage.Storage
	options Options
}

func newServer(t *testing.T, keys *signing.Keys) *server {
	t.Helper()
	dir := t.TempDir()
	files, err := directory.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	x, err := index.Open(context.Background(), filepath.Join(t.TempDir(), "index.db"), index.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(x.Close(), files.Close()); err != nil {
			t.Error(err)
		}
	})
	s := storage.New(x, files, storage.Options{Keys: keys})
	return &server{Storage: s, options: Options{Storage: s, Text: s.Text}}
}

// add adds an item. Bit N of stored is set if its Nth file is stored.
func (p *server) add(t *testing.T, text string, stored uint64) *narinfo.Narinfo {
	t.Helper()
	n, err := narinfo.Parse([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	err = p.Index().Update(t.Context(), func(tx *index.Tx) error {
		entry := p.Index().Prepare(n)
		entry.AddedAt, entry.Stored = time.Date(2024, 2, 29, 12, 0, 0, 0, time.UTC), stored
		return tx.Put(entry, nil)
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// get requests a page on the control listener, or the same page as the public sees it.
func (p *server) get(t *testing.T, path string, private bool) (status int, body, location string) {
	t.Helper()
	site := page.New(page.Options{Size: page.Full, URL: "https://guix.example.org"})
	Add(site, p.options)
	if !private {
		// The handler of the control listener serves the pages of the public one here.
		site = page.New(page.Options{Size: page.Full, URL: "https://guix.example.org"})
		o := p.options
		site.Add(page.Route{Name: "item", TakesRest: true, Make: func(ctx context.Context, r *page.Request) (*page.Page, error) {
			r.Private = false
			return o.page(ctx, r)
		}})
	}
	request := httptest.NewRequest("GET", path, nil)
	request.Header.Set("Accept", "text/html")
	answer := httptest.NewRecorder()
	site.Private(slog.New(slog.DiscardHandler)).ServeHTTP(answer, request)
	return answer.Code, answer.Body.String(), answer.Header().Get("Location")
}

// wants checks that a page has some texts, and lacks others, which begin with "!".
func wants(t *testing.T, body string, texts ...string) {
	t.Helper()
	for _, text := range texts {
		if unwanted, isUnwanted := strings.CutPrefix(text, "!"); isUnwanted == strings.Contains(body, strings.TrimPrefix(text, "!")) {
			t.Errorf("%q: unwanted: %v, in the page: %v\n%s", unwanted, isUnwanted, !isUnwanted, body)
		}
	}
}

func hash(n int) string { return fmt.Sprintf("%032d", n) }

// text returns the narinfo of an item without a signature, with lines at its end.
func text(n int, references string, lines ...string) string {
	if len(lines) == 0 {
		lines = []string{"URL: nar/lzip/" + hash(n) + "-item", "Compression: lzip", "FileSize: 2048"}
	}
	return "StorePath: /gnu/store/" + hash(n) + "-item\nNarHash: sha256:" + strings.Repeat("0", 52) + "\nNarSize: 4096\nReferences: " + references + "\n" + strings.Join(lines, "\n") + "\n"
}

// TestNames accepts the names of an item that people have, and leads to one page.
func TestNames(t *testing.T) {
	p := newServer(t, nil)
	p.add(t, text(1, ""), 1)
	for rest, want := range map[string]string{
		hash(1): "200", hash(1) + "-item": "302 ../item/" + hash(1), hash(1) + ".narinfo": "302 ../item/" + hash(1),
		"gnu/store/" + hash(1) + "-item":          "302 ../../../item/" + hash(1),
		"gnu/store/" + hash(1) + "-item/bin/item": "302 ../../../../../item/" + hash(1),
		hash(2): "404", hash(2) + "-item": "302 ../item/" + hash(2), "item": "404", hash(1)[1:]: "404", hash(1) + "-": "404", "%3Cscript%3E": "404",
		strings.Repeat("x", 5000): "404",
	} {
		status, body, location := p.get(t, "/item/"+rest, false)
		if got := strings.TrimSpace(fmt.Sprint(status, " ", location)); got != want {
			t.Errorf("%.80s: %s, want %s", rest, got, want)
		}
		wants(t, body, "!<script>")
	}
}

// TestUnknown says what is unknown, without asking upstreams.
func TestUnknown(t *testing.T) {
	p := newServer(t, nil)
	status, body, _ := p.get(t, "/item/"+hash(1), false)
	if status != http.StatusNotFound {
		t.Errorf("status %d", status)
	}
	wants(t, body, hash(1), "!upstreams")
	p.options.HasUpstreams = true
	_, body, _ = p.get(t, "/item/"+hash(1), false)
	wants(t, body, "upstreams may have one")
}

// TestPlaces shows where the nars are.
func TestPlaces(t *testing.T) {
	block := func(compression string) []string {
		return []string{"URL: nar/" + compression + "/" + hash(1) + "-item", "Compression: " + compression, "FileSize: 2048"}
	}
	cachedBlock := strings.Join(block("zstd"), "\n") + "\n"
	for name, test := range map[string]struct {
		stored    uint64
		isCached  bool
		hasRemote bool
		lines     []string
		want      []string
	}{
		"stored":             {stored: 1, want: []string{">stored<", ">on demand<", `href="../nar/lzip/` + hash(1) + `-item"`, `href="../nar/` + hash(1) + `-item"`, "!>missing<"}},
		"missing":            {want: []string{">missing<", "!>stored<", "!>on demand<", "!<a href=\"../nar/", "!wget"}},
		"remote":             {hasRemote: true, want: []string{">remote<", "!>missing<", `href="../nar/lzip/`, "!>on demand<", "wget"}},
		"cached":             {stored: 1, isCached: true, want: []string{">stored<", ">cached<", `href="../nar/zstd/`}},
		"other compressions": {stored: 1, lines: append(block("none"), block("gzip")...), want: []string{">uncompressed<", ">gzip<", "!>on demand<", ">missing<"}},
		"other server":       {lines: []string{"URL: https://example.com/nar", "Compression: lzip", "FileSize: 5"}, want: []string{">elsewhere<", "!example.com", "!wget"}},
		"name of no item":    {stored: 1, hasRemote: true, lines: []string{"URL: nar/0123.nar.xz", "Compression: xz", "FileSize: 5"}, want: []string{">missing<", "!>cached<", "!0123.nar", "!wget"}},
		"script":             {lines: []string{"URL: javascript:alert(1)", "Compression: lzip", "FileSize: 5"}, want: []string{">elsewhere<", "!javascript"}},
		"query":              {stored: 1, lines: []string{"URL: nar/lzip/" + hash(1) + "-item%3Fx%22y", "Compression: lzip", "FileSize: 5"}, want: []string{"!item?x", `item%3Fx%22y"`}},
	} {
		t.Run(name, func(t *testing.T) {
			p := newServer(t, nil)
			n := p.add(t, text(1, "", test.lines...), test.stored)
			if test.isCached {
				p.options.Text = func(context.Context, narinfo.PathHash) ([]byte, error) {
					return []byte(string(n.Text) + cachedBlock), nil
				}
			}
			p.options.HasRemote = test.hasRemote
			status, body, _ := p.get(t, "/item/"+hash(1), false)
			if status != http.StatusOK {
				t.Fatalf("status %d: %s", status, body)
			}
			wants(t, body, test.want...)
		})
	}
}

// TestSignatures gives a verdict on each narinfo of the corpus, and only the administrator learns
// which keys the server trusts.
func TestSignatures(t *testing.T) {
	keyText, err := os.ReadFile(filepath.Join(corpus, "publish-cache/signing-key.pub"))
	if err != nil {
		t.Fatal(err)
	}
	keys, err := signing.ParseKeys(keyText)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string][]string{
		"ok-ed25519": {"Valid:", "Authorized", "!Bad:"}, "ok-rsa": {"Valid:", "Authorized"},
		"bad-unsigned": {"None:", "No: unsigned"}, "bad-base64": {"Bad:", "No: bad signature"}, "bad-tampered-reference": {"Bad:", "hash mismatch"},
		"bad-version-2": {"Bad:"}, "bad-signed-part-lacks-references": {"Bad:", "References isn"}, "bad-sexp": {"Bad:"},
		"ok-tampered-url-is-unsigned": {"Valid:"}, "ok-unknown-fields": {"Valid:", "Guix ignores this field."}, "ok-url-before-signature": {"Valid:"},
	} {
		t.Run(name, func(t *testing.T) {
			p := newServer(t, keys)
			text, err := os.ReadFile(filepath.Join(corpus, "cases", name+".narinfo"))
			if err != nil {
				t.Fatal(err)
			}
			n := p.add(t, string(text), 0)
			path := "/item/" + n.StorePath.Hash.String()
			_, body, _ := p.get(t, path, true)
			wants(t, body, want...)
			_, body, _ = p.get(t, path, false)
			wants(t, body, want[0], "!Authorized")
			if key, err := n.SigningKey(); err == nil {
				wants(t, body, "Not published by this server")
				p.options.Keys, p.options.KeyNames = []string{"other", key}, []string{"signing-key.pub", "signing-key-2.pub"}
				_, body, _ = p.get(t, path, false)
				wants(t, body, `<a href="../signing-key-2.pub">`)
			}
		})
	}
}

// TestStranger shows a narinfo that tries to break the page.
func TestStranger(t *testing.T) {
	p := newServer(t, nil)
	const script = `"><script>alert(1)</script><a href='javascript:alert(2)'>`
	p.add(t, text(1, "", "System: "+script, "Deriver: "+script, "X: "+script, "Long: "+strings.Repeat("é", 20_000),
		"Signature: 1;"+script+";xxx", "URL: "+strings.Repeat("nar/", 200)+"x", "Compression: "+script, "FileSize: 9223372036854775807",
	), 0)
	status, body, _ := p.get(t, "/item/"+hash(1), true)
	if status != http.StatusOK || len(body) > 20_000 {
		t.Errorf("status %d, %d bytes", status, len(body))
	}
	wants(t, body, "!<script>alert", "!href='javascript", "!href=\"javascript", "&lt;script&gt;", "!\ufffd")
}

// TestReferences lists references and referrers, page by page.
func TestReferences(t *testing.T) {
	p := newServer(t, nil)
	var references []string
	for n := 1000; n < 1250; n++ {
		references = append(references, hash(n)+"-item")
	}
	p.add(t, text(1, strings.Join(append(references, hash(1)+"-item"), " ")), 1)
	p.add(t, text(1000, ""), 1)
	_, body, _ := p.get(t, "/item/"+hash(1), false)
	wants(t, body, "refers to 251 items; these are 1 to 25", `<a href="`+hash(1000)+`">`, `!<a href="`+hash(1001)+`">`, `href="?references=2#references"`, "!Back",
		"more than 2 items", "48 missing", "and 28 more")
	_, body, _ = p.get(t, "/item/"+hash(1)+"?closure=all", false)
	wants(t, body, "2 items", "249 missing", "and 229 more", "!more than")
	wants(t, body, `<meta name="robots" content="noindex, nofollow">`)
	for query, want := range map[string][]string{
		"references=2":  {"these are 26 to 50", `href="?references=3#references"`, `href="?references=1#references"`},
		"references=11": {"these are 251 to 251", "!references=12", "<small>itself</small>"}, "references=99999999999": {"these are 251 to 251"},
		"references=-1": {"1 to 25"}, "references=x&referrers=y": {"1 to 25"}, "references=9223372036854775807": {"251"},
	} {
		_, body, _ := p.get(t, "/item/"+hash(1)+"?"+query, false)
		wants(t, body, want...)
	}
	for n := 2000; n < 2040; n++ {
		p.add(t, text(n, hash(1000)+"-item"), 1)
	}
	_, body, _ = p.get(t, "/item/"+hash(1000), false)
	wants(t, body, "refers to no other item", "the newest first", `<a href="`+hash(2039)+`">`, `!<a href="`+hash(2014)+`">`)
	_, next, found := strings.Cut(body, `<a rel="next" href="`)
	next, _, _ = strings.Cut(next, "#")
	if !found {
		t.Fatal("no next page")
	}
	_, body, _ = p.get(t, "/item/"+hash(1000)+next, false)
	wants(t, body, `<a href="`+hash(2014)+`">`, `<a href="`+hash(1)+`">`, `!<a href="`+hash(2015)+`">`, `!rel="next"`, "The newest")
}

// TestLargeClosure says that a closure has more items than are counted, and counts all on request.
func TestLargeClosure(t *testing.T) {
	p := newServer(t, nil)
	err := p.Index().Update(t.Context(), func(tx *index.Tx) error {
		for i := range mostOnRequest + 1 {
			n, err := narinfo.Parse([]byte(text(i, hash(i+1)+"-item")))
			if err != nil {
				return err
			}
			if err := tx.Put(p.Index().Prepare(n), nil); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	last := mostOnRequest + 1 // is missing
	for path, want := range map[string][]string{
		hash(0):                       {"over 200.0 KiB", "more than 50 items", `href="?closure=all"`, "! missing</span>"},
		hash(0) + "?closure=all":      {"over 19.5 MiB", "more than 5,000 items", "!?closure=all"},
		hash(2) + "?closure=all":      {"19.5 MiB", "4,999 items", "1 missing", "!more than", "!?closure=all", hash(last)},
		hash(2) + "?closure=x":        {"more than 50 items"},
		hash(last - mostFollowed + 1): {"49 items", "1 missing", "!more than", "!?closure=all", hash(last)},
		hash(last-mostFollowed+1) + "?closure=all&q=<b>": {"49 items", "!<b>"},
	} {
		_, body, _ := p.get(t, "/item/"+path, false)
		wants(t, body, want...)
	}
}

// TestDamagedClosure shows the rest of a closure with a damaged item, and of one with a lost item.
func TestDamagedClosure(t *testing.T) {
	p := newServer(t, nil)
	p.add(t, text(1, ""), 1)
	p.add(t, text(2, hash(1)+"-item"), 1)
	p.add(t, text(3, ""), 0)
	p.add(t, text(4, hash(2)+"-item "+hash(3)+"-item"), 1)
	lost, err := narinfo.ParsePathHash(hash(3))
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Index().Update(t.Context(), func(tx *index.Tx) error { return tx.SetLost(lost, time.Now()) }); err != nil {
		t.Fatal(err)
	}
	damage(t, p.Index().Path(), 1)
	status, body, _ := p.get(t, "/item/"+hash(4), false)
	if status != http.StatusOK {
		t.Fatalf("status %d: %s", status, body)
	}
	wants(t, body, "8.0 KiB", "2 items", "1 missing", "1 damaged", "An item of the closure can’t be read", `!href="`+hash(3)+`"`)
	if status, _, _ = p.get(t, "/item/"+hash(3), false); status != http.StatusNotFound {
		t.Errorf("the lost item: status %d", status)
	}
	_, body, _ = p.get(t, "/item/"+hash(4), true)
	wants(t, body, `href="`+hash(3)+`"`, "1 missing")
}

// TestDamaged says that an item is damaged, and to the administrator, what to do.
func TestDamaged(t *testing.T) {
	p := newServer(t, nil)
	p.add(t, text(1, ""), 1)
	damage(t, p.Index().Path(), 1)
	for _, private := range []bool{false, true} {
		status, body, _ := p.get(t, "/item/"+hash(1), private)
		if status != http.StatusInternalServerError {
			t.Errorf("private %v: status %d", private, status)
		}
		wants(t, body, "<h1>Damaged item</h1>", hash(1))
		if got := strings.Contains(body, "nar-herder check --repair"); got != private {
			t.Errorf("private %v: the command is shown: %v", private, got)
		}
	}
}

// damage damages the narinfo at a position in a database.
func damage(t *testing.T, database string, position int) {
	t.Helper()
	db, err := sql.Open("sqlite", database)
	if err != nil {
		t.Fatal(err)
	}
	_, err = db.Exec("UPDATE narinfos SET text = x'00' WHERE id = ?", position)
	if err := errors.Join(err, db.Close()); err != nil {
		t.Fatal(err)
	}
}

// TestPrivate shows tags, pins, uses and withdrawn items to the administrator only.
func TestPrivate(t *testing.T) {
	p := newServer(t, nil)
	n := p.add(t, text(1, ""), 1)
	at := time.Date(2024, 3, 1, 12, 0, 0, 0, time.UTC)
	update := func(f func(tx *index.Tx) error) {
		t.Helper()
		if err := p.Index().Update(t.Context(), f); err != nil {
			t.Fatal(err)
		}
	}
	update(func(tx *index.Tx) error {
		_, err := tx.Pin(n.StorePath.Hash, at)
		_, err2 := tx.CountUses([]index.Uses{{Hash: n.StorePath.Hash, Count: 7, Last: at.Add(24 * time.Hour)}}, 100)
		return errors.Join(err, err2, tx.AddTags(n.StorePath.Hash, []index.Tag{{Key: "unit", Value: "<b>"}}))
	})
	secrets := []string{"unit=&lt;b&gt;", "since 2024-03-01", "7, the last on 2024-03-02"}
	_, body, _ := p.get(t, "/item/"+hash(1), true)
	wants(t, body, secrets...)
	// The control listener has pages only: other links lead to clients' listener.
	wants(t, body, `href="https://guix.example.org/`+hash(1)+`.narinfo"`, `href="https://guix.example.org/nar/`)
	_, body, _ = p.get(t, "/item/"+hash(1), false)
	wants(t, body, "!"+secrets[0], "!"+secrets[1], "!"+secrets[2], "!Pinned", "2024-02-29")
	update(func(tx *index.Tx) error {
		_, err := tx.Withdraw(n.StorePath.Hash, at)
		return err
	})
	status, body, _ := p.get(t, "/item/"+hash(1), true)
	wants(t, body, "Withdrawn", "on 2024-03-01", "until 2024-03-")
	public, publicBody, _ := p.get(t, "/item/"+hash(1), false)
	_, unknown, _ := p.get(t, "/item/"+hash(3), false)
	if status != http.StatusOK || public != http.StatusNotFound || strings.ReplaceAll(publicBody, hash(1), hash(3)) != unknown {
		t.Errorf("control %d, public %d: %s", status, public, publicBody)
	}
}
