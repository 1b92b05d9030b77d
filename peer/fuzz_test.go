package peer

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"reflect"
	"slices"
	"strings"
	"testing"
)

// sealedPage is an honest page with changes after number 1.
func sealedPage(t testing.TB, count int) (page ChangesReply, text []byte) {
	t.Helper()
	page = ChangesReply{LogState: LogState{Instance: "x", First: 1, Last: 9, Position: int64(count) + 1, Previous: int64(count) + 1, Mark: "m", Chain: []string{"y"}}, Changes: []Change{}}
	for n := range int64(count) {
		change := Change{ID: n + 2, Previous: n + 1, Mark: "m", Datetime: "2026-01-01 00:00:00", Change: Removal, Data: "/gnu/store/x"}
		change.Seal("x")
		page.Changes = append(page.Changes, change)
	}
	page.Seal()
	text, err := json.Marshal(page)
	if err != nil {
		t.Fatal(err)
	}
	return page, text
}

// FuzzReadReply: a page of any bytes is refused, or read like the standard decoder would,
// complete and in order.
func FuzzReadReply(f *testing.F) {
	for _, count := range []int{0, 1, 3} {
		_, text := sealedPage(f, count)
		f.Add(text)
		f.Add(bytes.Replace(text, []byte(`"id":3`), []byte(`"id":4`), 1))
		f.Add(bytes.Replace(text, []byte(`"recent_changes"`), []byte(`"Recent_Changes":[],"recent_changes"`), 1))
		f.Add(append(text, text...))
		f.Add(text[:len(text)/2])
	}
	for _, text := range []string{"", "{}", "[]", "null", `{"recent_changes":null}`, `{"recent_changes":[{}]}`, `{"instance":"x","recent_changes":[]}`, `{"instance":{},"recent_changes":[]}`,
		strings.Repeat("[", 20_000), `{"recent_changes":[` + strings.Repeat("[", 20_000)} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		reply, err := readReply(bytes.NewReader(body), Known{Position: 1})
		if err != nil {
			return
		}
		var want ChangesReply
		if err := json.Unmarshal(body, &want); err != nil {
			t.Fatalf("%q was accepted: %v", body, err)
		}
		if want.Changes = slices.Grow(want.Changes, 0); len(want.Changes) == 0 {
			want.Changes = reply.Changes[:0]
		}
		if !reflect.DeepEqual(*reply, want) {
			t.Fatalf("%+v, want %+v", *reply, want)
		}
		told := int64(1)
		for _, change := range reply.Changes {
			if change.Previous != told || change.ID <= told || change.Sum != change.sum(reply.Instance) {
				t.Fatalf("%q was accepted", body)
			}
			told = change.ID
		}
		if reply.Instance == "" || reply.Position < told || reply.Sum != reply.sum() {
			t.Fatalf("%q was accepted", body)
		}
	})
}

// FuzzReadChanges: of an original's answer of any bytes, the same changes are read as by
// the standard decoder.
func FuzzReadChanges(f *testing.F) {
	for _, text := range []string{
		`{"recent_changes":[]}`, `{"recent_changes":[{"datetime":"2026-01-01 00:00:00","change":"addition","data":"StorePath: x\n"}]}`,
		`{"more":{"recent_changes":[]},"recent_changes":[{"data":"\ud800"},{}]}`, `{"recent_changes":[],"recent_changes":[]}`, `{"recent_changes":[{"id":1e3}]}`,
		"", "{}", "null", "<html>", `{"recent_changes":[`, `{"recent_changes":[]} x`, `{"recent_changes":[]}{}`,
	} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		var told []Change
		err := readChanges(bytes.NewReader(body), func(c Change) error {
			told = append(told, c)
			return nil
		})
		if err != nil {
			return
		}
		var want struct {
			Changes []Change `json:"recent_changes"`
		}
		if err := json.Unmarshal(body, &want); err != nil || !slices.Equal(told, want.Changes) {
			t.Fatalf("%q: %+v, want %+v, %v", body, told, want.Changes, err)
		}
	})
}

// FuzzStream: of a stream of any bytes, only complete changes in order are read.
func FuzzStream(f *testing.F) {
	page, _ := sealedPage(f, 3)
	event := func(kind string, data any) string {
		text, err := json.Marshal(data)
		if err != nil {
			f.Fatal(err)
		}
		return "event: " + kind + "\ndata: " + string(text) + "\n\n"
	}
	begin := page.LogState
	begin.Position, begin.Previous = 1, 1
	begin.Seal()
	whole := event(StateEvent, begin)
	for i := range page.Changes {
		whole += fmt.Sprintf("id: %d\n", i) + event(ChangeEvent, page.Changes[i])
	}
	whole += event(StateEvent, page.LogState)
	for _, text := range []string{
		whole, strings.ReplaceAll(whole, "\n", "\r\n"), whole[:len(whole)/2], ": comment\n\n" + whole, strings.Replace(whole, "event: change", "event: other", 1),
		"event: state\ndata: {}\n\n", "data: x\n\n\n\n", "event: state\n\n", strings.Repeat("x", 100_000), "",
	} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		s := &Stream{body: io.NopCloser(nil), lines: bufio.NewReaderSize(bytes.NewReader(body), 64<<10), sent: 1}
		told := int64(1)
		for range len(body) + 1 {
			change, err := s.Next()
			if err != nil {
				if _, again := s.Next(); !errors.Is(again, err) {
					t.Fatalf("%v, and then %v", err, again)
				}
				return
			}
			if change == nil {
				if state := s.State(); state.Previous != told || state.Position < told || state.Sum != state.sum() {
					t.Fatalf("%q: the state %+v", body, state)
				}
				told = s.State().Position
				continue
			}
			if change.Previous != told || change.ID <= told || change.Sum != change.sum(s.State().Instance) {
				t.Fatalf("%q: the change %+v", body, change)
			}
			told = change.ID
		}
		t.Fatalf("%q has no end", body)
	})
}

// FuzzReadLost: any bytes instead of changes.
func FuzzReadLost(f *testing.F) {
	page, _ := sealedPage(f, 0)
	text, err := json.Marshal(page.LogState)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text)
	f.Add(text[:len(text)-1])
	f.Add([]byte("null"))
	f.Fuzz(func(t *testing.T, body []byte) {
		err := readLost(bytes.NewReader(body))
		if lost := AsLost(err); err == nil || lost != nil && lost.Sum != lost.sum() {
			t.Fatalf("%q: %v", body, err)
		}
	})
}

// FuzzParseURL: an accepted URL leads to one server, and no message has its password.
func FuzzParseURL(f *testing.F) {
	for _, text := range []string{"http://x", "https://user:secret@x.example/guix", "http://[::1]:80", "http://x?", "http://x#", "//x", "http:x", "http://x/a%2Cb", "http://x\n"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		parsed, err := ParseURL(text)
		if err != nil {
			return
		}
		if again, err := ParseURL(parsed.String()); err != nil || !SameURL(parsed, again) {
			t.Fatalf("%q is %s, which is %v, %v", text, parsed, again, err)
		}
		if strings.ContainsAny(Name(parsed), "\n\r ?#") {
			t.Fatalf("%q has the name %q", text, Name(parsed))
		}
	})
}

// FuzzIsRangeOf: any text as a Content-Range.
func FuzzIsRangeOf(f *testing.F) {
	f.Add("bytes 5-9/10", int64(5), int64(10))
	f.Add("bytes 5-9/*", int64(5), int64(-1))
	f.Add("bytes 5-9/-1", int64(5), int64(-1))
	f.Add("bytes */10", int64(0), int64(10))
	f.Fuzz(func(t *testing.T, header string, offset, size int64) {
		if IsRangeOf(header, offset, size) && !strings.HasPrefix(header, fmt.Sprintf("bytes %d-", offset)) {
			t.Fatalf("%q was taken for the part from %d on", header, offset)
		}
	})
}
