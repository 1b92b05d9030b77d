package fetch

import (
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
)

const (
	hello = "/gnu/store/m0ldl6ng83ngjinmxsyblp8vhzaqj6f6-hello-2.12.1"
	glibc = "/gnu/store/xcm5nm4hpjpg6xffzrdd5lxg34v6bqwv-glibc-2.39"
	odd   = "/gnu/store/2y8b79q71l3w1d9kh7i1b5al0mlahnd3-odd_name-1.0+x=y?z"
)

func TestList(t *testing.T) {
	t.Parallel()
	for what, test := range map[string]struct {
		text        string
		want        []string
		derivations int
		invalid     []string
	}{
		"paths": {hello + "\n" + glibc + "\n" + odd, []string{hello, glibc, odd}, 0, nil},
		// The output of guix build -n, and of a build.
		"build -n": {"substitute: updating substitutes from 'https://bordeaux.guix.gnu.org'... 100.0%\n" +
			"The following derivations would be built:\n  /gnu/store/a5v4ih8ydn8xh2bgpqihdhsj4dk63vz9-hello-2.12.1.drv\n" +
			"1.4 MB would be downloaded:\n   " + hello + "\n   " + glibc + "\r\n", []string{hello, glibc}, 1, nil},
		"building": {"building " + strings.Replace(hello, "-2.12.1", ".drv", 1) + "...\nsuccessfully built " + hello + "...\n", []string{hello}, 1, nil},
		// The output of guix weather --display-missing.
		"weather": {"looking for 2 store items on https://ci.guix.gnu.org...\nhttps://ci.guix.gnu.org ☀\n  50.0% substitutes available (1 out of 2)\n" +
			"Substitutes are missing for the following items:\n  " + hello + " x86_64-linux\n", []string{hello}, 0, nil},
		"twice":        {hello + " " + hello + "\n" + hello, []string{hello}, 0, nil},
		"in a text":    {"export PATH=" + hello + "/bin:" + glibc + "/sbin\n(\"" + odd + "\", '" + hello + "')", []string{hello, glibc, odd}, 0, nil},
		"one word":     {"a=" + hello + "//b=" + glibc, []string{hello, glibc}, 0, nil},
		"nothing":      {"", nil, 0, nil},
		"no path":      {"/gnu/store /gnu/store/ is a directory. /gnu/store/... hello-2.12.1", nil, 0, nil},
		"cut":          {hello[:20] + "\n" + hello[:43] + "\n" + glibc, []string{glibc}, 0, []string{hello[:20], hello[:43]}},
		"wrong hash":   {"/gnu/store/eeeeeeeeeeeeeeeeeeeeeeeeeeeeeeee-hello", nil, 0, []string{"/gnu/store/eeeeeeeeeeeeeeeeeeeeeeeeeeeeeeee-hello"}},
		"binary":       {"\x00\xff\x00" + hello + "\x00" + strings.Repeat("\x00", 2*longestWord) + glibc, []string{hello, glibc}, 0, nil},
		"long name":    {hello + strings.Repeat("x", 300), nil, 0, []string{hello + strings.Repeat("x", 300)}},
		"longest word": {strings.Repeat("x", longestWord-len(hello)-1) + hello, []string{hello}, 0, nil},
	} {
		for _, from := range []io.Reader{strings.NewReader(test.text), iotest.OneByteReader(strings.NewReader(test.text))} {
			var list List
			if err := list.Read(from); err != nil {
				t.Errorf("%s: %v", what, err)
				continue
			}
			var got []string
			for _, path := range list.Paths {
				got = append(got, path.String())
			}
			if !slices.Equal(got, test.want) || list.Derivations != test.derivations || !slices.Equal(list.Invalid, test.invalid) {
				t.Errorf("%s: %q, %d derivations, invalid: %q", what, got, list.Derivations, list.Invalid)
			}
		}
	}
}

// TestListFailures: no list is taken for an empty one.
func TestListFailures(t *testing.T) {
	t.Parallel()
	var list List
	if err := list.Read(strings.NewReader(hello + " " + strings.Repeat("x", longestWord+1))); err == nil || !strings.Contains(err.Error(), "not a list of store paths") {
		t.Errorf("a long word: %v", err)
	}
	failure := errors.New("the disk fails")
	if err := list.Read(io.MultiReader(strings.NewReader(hello+"\n"), iotest.ErrReader(failure))); !errors.Is(err, failure) {
		t.Errorf("a failing file: %v", err)
	}
}

func FuzzList(f *testing.F) {
	f.Add(hello + "\n" + glibc)
	f.Fuzz(func(t *testing.T, text string) {
		var list List
		if list.Read(strings.NewReader(text)) != nil {
			return
		}
		for _, path := range list.Paths {
			if !strings.Contains(text, path.String()) || strings.HasSuffix(path.Name, ".drv") {
				t.Errorf("%q of %q", path, text)
			}
		}
	})
}
