package narinfo

import (
	"strings"
	"testing"
)

const helloHash = "hbdalsf5lpf01x4dcknwx6xbn6n5km6k"

func TestParsePathHash(t *testing.T) {
	for _, text := range []string{
		helloHash,
		"00000000000000000000000000000000",
		"zzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzz",
		"0123456789abcdfghijklmnpqrsvwxyz",
	} {
		hash, err := ParsePathHash(text)
		if err != nil {
			t.Errorf("ParsePathHash(%q): %v", text, err)
			continue
		}
		if got := hash.String(); got != text {
			t.Errorf("ParsePathHash(%q) is %q", text, got)
		}
		if fromBytes, err := ParsePathHash([]byte(text)); err != nil || fromBytes != hash {
			t.Errorf("ParsePathHash([]byte(%q)) = %v, %v, want %v", text, fromBytes, err, hash)
		}
		if got, err := hash.AppendText([]byte("/")); err != nil || string(got) != "/"+text {
			t.Errorf("AppendText = %q, %v", got, err)
		}
		var slow PathHash
		if err := DecodeBase32(slow[:], text); err != nil || slow != hash {
			t.Errorf("DecodeBase32(%q) = %v, %v, want %v", text, slow, err, hash)
		}
	}
}

func TestParsePathHashErrors(t *testing.T) {
	for _, text := range []string{
		"",
		helloHash[1:],
		helloHash + "0",
		strings.ToUpper(helloHash),
		"e" + helloHash[1:],
		helloHash[:31] + "t",
		helloHash[:31] + "/",
		helloHash[:31] + "\x00",
		helloHash[:30] + "é",
	} {
		hash, err := ParsePathHash(text)
		if err == nil {
			t.Errorf("ParsePathHash(%q) = %v, want an error", text, hash)
		}
		if hash != (PathHash{}) {
			t.Errorf("ParsePathHash(%q) = %v beside an error, want zero", text, hash)
		}
	}
}

func TestParsePathHashAllocates(t *testing.T) {
	bytes := []byte(helloHash)
	if n := testing.AllocsPerRun(100, func() {
		if _, err := ParsePathHash(bytes); err != nil {
			t.Fatal(err)
		}
		if _, err := ParsePathHash(helloHash); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations, want none", n)
	}
}

func TestParseStorePath(t *testing.T) {
	longest := strings.Repeat("n", MaxNameLen)
	for _, name := range []string{"a", "hello-2.10.tar.gz", "odd_name-1.0+x=y?z", "-", "_", "a..", longest} {
		path, err := ParseStorePath("/gnu/store/" + helloHash + "-" + name)
		if err != nil {
			t.Errorf("%q: %v", name, err)
			continue
		}
		if path.Name != name || path.Hash.String() != helloHash {
			t.Errorf("%q: got %+v", name, path)
		}
		if got, want := path.String(), "/gnu/store/"+helloHash+"-"+name; got != want {
			t.Errorf("String() = %q, want %q", got, want)
		}
		if got, want := path.BaseName(), helloHash+"-"+name; got != want {
			t.Errorf("BaseName() = %q, want %q", got, want)
		}
	}
}

func TestParseStorePathErrors(t *testing.T) {
	for _, test := range []struct{ path, want string }{
		{"", "must begin with /gnu/store/"},
		{"/gnu/store", "must begin with /gnu/store/"},
		{"/gnu/store/", "must begin with /gnu/store/"},
		{"/nix/store/" + helloHash + "-a", "must begin with /gnu/store/"},
		{"gnu/store/" + helloHash + "-a", "must begin with /gnu/store/"},
		{helloHash + "-a", "must begin with /gnu/store/"},
		{"/gnu/store/" + helloHash, "must be HASH-NAME"},
		{"/gnu/store/" + helloHash + "_a", "must be HASH-NAME"},
		{"/gnu/store/short-a", "must be HASH-NAME"},
		{"/gnu/store/" + helloHash + "-", "empty"},
		{"/gnu/store/" + helloHash + "-.a", "dot"},
		{"/gnu/store/" + helloHash + "-..", "dot"},
		{"/gnu/store/" + helloHash + "-a/b", `'/'`},
		{"/gnu/store/" + helloHash + "-a ", `' '`},
		{"/gnu/store/" + helloHash + "-a%2b", `'%'`},
		{"/gnu/store/" + helloHash + "-a\n", `'\n'`},
		{"/gnu/store/" + helloHash + "-é", "only letters"},
		{"/gnu/store/" + strings.ToUpper(helloHash) + "-a", "characters 0123"},
		{"/gnu/store/" + helloHash + "-" + strings.Repeat("n", MaxNameLen+1), "212 bytes, at most 211"},
	} {
		_, err := ParseStorePath(test.path)
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("ParseStorePath(%q) = %v, want %q in it", test.path, err, test.want)
		}
		if err != nil && strings.Contains(err.Error(), "\n") {
			t.Errorf("ParseStorePath(%q): error of several lines: %v", test.path, err)
		}
	}
}

func FuzzParsePathHash(f *testing.F) {
	f.Add(helloHash)
	f.Add("zzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzz")
	f.Add("e0000000000000000000000000000000")
	f.Fuzz(func(t *testing.T, text string) {
		hash, err := ParsePathHash(text)
		var slow PathHash
		slowErr := DecodeBase32(slow[:], text)
		if (err == nil) != (slowErr == nil) {
			t.Fatalf("%q: %v, but DecodeBase32: %v", text, err, slowErr)
		}
		if err == nil && (hash != slow || hash.String() != text) {
			t.Fatalf("%q: %v, but DecodeBase32: %v", text, hash, slow)
		}
	})
}

func BenchmarkParsePathHash(b *testing.B) {
	b.Run("string", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := ParsePathHash(helloHash); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("bytes", func(b *testing.B) {
		text := []byte(helloHash)
		b.ReportAllocs()
		for b.Loop() {
			if _, err := ParsePathHash(text); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func BenchmarkPathHashAppendText(b *testing.B) {
	hash, err := ParsePathHash(helloHash)
	if err != nil {
		b.Fatal(err)
	}
	dst := make([]byte, 0, PathHashLen)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := hash.AppendText(dst); err != nil {
			b.Fatal(err)
		}
	}
}
