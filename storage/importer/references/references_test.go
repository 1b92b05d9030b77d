package references

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"nar-herder/narinfo"
)

// path returns the store path of an item with a name of one letter.
func path(t *testing.T, name string) narinfo.StorePath {
	t.Helper()
	path, err := narinfo.ParseStorePath("/gnu/store/" + strings.Repeat(name, 32) + "-" + name)
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// parse parses items such as "a:bc", which refers to b and c.
func parse(t *testing.T, text string) (items []Item) {
	for field := range strings.FieldsSeq(text) {
		name, missing, _ := strings.Cut(field, ":")
		item := Item{Hash: path(t, name).Hash}
		for _, reference := range missing {
			item.Missing = append(item.Missing, path(t, string(reference)))
		}
		items = append(items, item)
	}
	return items
}

// format returns the letters of store paths.
func format(paths []narinfo.StorePath) string {
	var text strings.Builder
	for _, path := range paths {
		text.WriteByte(path.BaseName()[0])
	}
	return text.String()
}

func TestOrder(t *testing.T) {
	for _, test := range []struct{ name, items, want string }{
		{"nothing", "", ""},
		{"chain", "a:b b:c c", "c b a"},
		{"cycle", "a:b b:a c:a", "b a c"},
		{"unknown reference", "a:b b:x c", "b!x a!b c"},
		{"cycle with an unknown reference", "a:b b:ax c:b", "b!ax a!b c!b"},
		{"one of two files is good", "a:b b:x b", "b b!x a"},
		{"each of two files is bad", "a:b b:x b:y", "b!y b!x a!b"},
		{"several", "a:xcy c", "c a!xy"},
	} {
		t.Run(test.name, func(t *testing.T) {
			items := parse(t, test.items)
			var got []string
			Order(items, func(n int, lacks []narinfo.StorePath) {
				text := strings.Fields(test.items)[n][:1]
				if lacks != nil {
					text += "!" + format(lacks)
				}
				got = append(got, text)
			})
			if want := strings.Fields(test.want); !slices.Equal(got, want) {
				t.Errorf("got %q, want %q", got, want)
			}
		})
	}
}

func TestTogether(t *testing.T) {
	for _, test := range []struct{ name, items, coming, want string }{
		{"nothing", "", "", ""},
		{"cycle", "a:b b:a", "", "a b"},
		{"a reference is coming", "a:b b:c d", "c", "a? b? d"},
		{"a reference is neither", "a:b b:x c", "", "a!b b!x c"},
		{"lacks one, waits for another", "a:cx b:a", "c", "a!x b!a"},
		{"waits for an item that fails", "a:bc b:x c:d", "d", "a!b b!x c?"},
		{"another file of the item is coming", "a:b b:x", "b", "a? b!x"},
	} {
		t.Run(test.name, func(t *testing.T) {
			coming := make(map[narinfo.PathHash]int)
			for _, name := range test.coming {
				coming[path(t, string(name)).Hash]++
			}
			waits, lacks := Together(parse(t, test.items), coming)
			var got []string
			for n, field := range strings.Fields(test.items) {
				text := field[:1]
				if waits[n] {
					text += "?"
				}
				if lacks[n] != nil {
					text += fmt.Sprint("!", format(lacks[n]))
				}
				got = append(got, text)
			}
			if want := strings.Fields(test.want); !slices.Equal(got, want) {
				t.Errorf("got %q, want %q", got, want)
			}
		})
	}
}
