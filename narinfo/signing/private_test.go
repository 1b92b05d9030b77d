package signing

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// newPrivate returns a new key.
func newPrivate(t testing.TB) *PrivateKey {
	t.Helper()
	key, err := GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// rsaPrivateText returns a new RSA key of so many bits as libgcrypt writes it.
func rsaPrivateText(t testing.TB, bits int) string {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, bits)
	if err != nil {
		t.Fatal(err)
	}
	// libgcrypt wants p to be the smaller one, and u is the inverse of p modulo q.
	p, q := key.Primes[0], key.Primes[1]
	if p.Cmp(q) > 0 {
		p, q = q, p
	}
	return fmt.Sprintf("(private-key (rsa (n #%s#) (e #%s#) (d #%s#) (p #%s#) (q #%s#) (u #%s#)))",
		printedNumber(key.N), "010001", printedNumber(key.D), printedNumber(p), printedNumber(q), printedNumber(new(big.Int).ModInverse(p, q)))
}

func TestPrivateKey(t *testing.T) {
	for name, key := range map[string]*PrivateKey{"ECDSA": newPrivate(t), "RSA": mustParsePrivate(t, rsaPrivateText(t, 2048))} {
		again := mustParsePrivate(t, key.Private())
		if again.Private() != key.Private() || again.Public() != key.Public() {
			t.Errorf("%s: got %s and %s, want %s and %s", name, again.Private(), again.Public(), key.Private(), key.Public())
		}
		hash := sha256.Sum256([]byte(signed))
		signature, err := key.Sign(hash, "host.example")
		if err != nil {
			t.Fatal(err)
		}
		if same, err := again.Sign(hash, "host.example"); err != nil || same != signature {
			t.Errorf("%s: signatures differ: %v", name, err)
		}
		if !strings.HasPrefix(signature, "1;host.example;") {
			t.Errorf("%s: the signature is %s", name, signature)
		}
		if text, err := Key(signature); err != nil || text != key.Public() {
			t.Errorf("%s: the key is %q, %v", name, text, err)
		}
		keys, err := ParseKeys([]byte(key.Public()))
		if err != nil {
			t.Fatal(err)
		}
		if err := Verify(signature, hash, keys); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		checkVerdict(t, Verify(signature, sha256.Sum256(nil), keys), ErrHashMismatch, "hash mismatch")
	}
}

func mustParsePrivate(t testing.TB, text string) *PrivateKey {
	t.Helper()
	key, err := ParsePrivateKey([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func TestSignHost(t *testing.T) {
	key := newPrivate(t)
	for _, host := range []string{"", "a", "build-1.example.org", strings.Repeat("a", 253)} {
		if _, err := key.Sign([32]byte{}, host); err != nil {
			t.Errorf("%q: %v", host, err)
		}
	}
	for _, host := range []string{"a;b", ";", "a b", "a\nURL: x", "\x00", "\x7f", "bücher"} {
		if signature, err := key.Sign([32]byte{}, host); err == nil {
			t.Errorf("%q: got %s", host, signature)
		}
	}
}

func TestGenerateKeyWithoutRandomness(t *testing.T) {
	if _, err := GenerateKey(io.LimitReader(rand.Reader, 31)); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("got %v", err)
	}
}

// The files of a new key are ASCII, so that Guix reads them in any locale.
func TestGenerateKeyASCII(t *testing.T) {
	const printable = "Adadadadadadadadadadadadadadad`h"
	key, err := GenerateKey(io.MultiReader(strings.NewReader(printable), rand.Reader))
	if err != nil || strings.Contains(key.Private(), `"`) {
		t.Errorf("got %v", err)
	}
	// Such a key of Guix is read.
	d := []byte(printable)
	q, err := publicOf(d)
	if err != nil {
		t.Fatal(err)
	}
	quoted, err := newECDSAPrivate(q, d)
	if err != nil || !strings.Contains(quoted.Private(), printable) {
		t.Fatalf("%v", err)
	}
	if again := mustParsePrivate(t, quoted.Private()); again.Private() != quoted.Private() {
		t.Error("the key changed")
	}
}

func BenchmarkSign(b *testing.B) {
	for name, key := range map[string]*PrivateKey{"ECDSA": newPrivate(b), "RSA2048": mustParsePrivate(b, rsaPrivateText(b, 2048))} {
		b.Run(name, func(b *testing.B) {
			var hash [sha256.Size]byte
			for b.Loop() {
				hash[0]++
				if _, err := key.Sign(hash, "host"); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func TestParsePrivateKeyErrors(t *testing.T) {
	key := newPrivate(t).Private()
	d := strings.Trim(element(key, "d"), "()d #")
	q := strings.Trim(element(key, "q"), "()q #")
	rsaKey := rsaPrivateText(t, 1024)
	primes := element(rsaKey, "p")
	for _, test := range []struct{ name, text, want string }{
		{"empty", "", "begins with '('"},
		{"public key", newPrivate(t).Public(), "this is a public key"},
		{"key pair", "(key-data " + key + ")", "must be of the form"},
		{"two keys", key + key, "more text"},
		{"comment", "; secret\n" + key, "begins with '('"},
		{"enormous", key + strings.Repeat("\n", maxPrivateKeySize), "at most 65536"},
		{"deep", strings.Repeat("(private-key ", 1000), "levels"},
		{"OpenSSH", "-----BEGIN OPENSSH PRIVATE KEY-----\n" + d, "begins with '('"},
		{"other curve", strings.Replace(key, "Ed25519", "secp256k1", 1), "must be on the curve Ed25519"},
		{"EdDSA", strings.Replace(key, "(curve", "(flags eddsa) (curve", 1), "must be of the form"},
		{"other algorithm", strings.Replace(key, "ecc", "dsa", 1), "must be of the form"},
		{"no d", strings.Replace(key, "(d #"+d+"#)", "", 1), "must be of the form"},
		{"no q", strings.Replace(key, "(q #"+q+"#)", "", 1), "must be of the form"},
		{"two d", strings.Replace(key, "(d ", "(d #"+d+"#) (d ", 1), "must be of the form"},
		{"d a list", strings.Replace(key, "#"+d+"#", "(x #"+d+"#)", 1), "must be of the form"},
		{"d without a name", strings.Replace(key, "(d #"+d+"#)", "#"+d+"#", 1), "must be of the form"},
		{"d is the name", strings.Replace(key, "(d #"+d+"#)", "(#"+d+"# d)", 1), "must be of the form"},
		{"d of 0", strings.Replace(key, d, "00", 1), "a multiple of the curve's order"},
		{"empty d", strings.Replace(key, d, "", 1), "a multiple of the curve's order"},
		{"d of n", strings.Replace(key, d, groupOrder.Text(16), 1), "a multiple of the curve's order"},
		{"long d", strings.Replace(key, d, "01"+d, 1), "at most 32 bytes"},
		{"very long d", strings.Replace(key, d, strings.Repeat("01", 20000), 1), "at most 32 bytes"},
		{"other q", strings.Replace(key, q, q1, 1), "don't belong together"},
		{"other d", strings.Replace(key, d, q1, 1), "don't belong together"},
		{"odd digits", strings.Replace(key, d, d[1:], 1), "pairs of digits"},
		{"quoted d cut", strings.Replace(key, "#"+d+"#", "\""+d, 1), "cut off"},
		{"unknown escape", strings.Replace(key, "#"+d+"#", "\"\\z"+d+"\"", 1), "escape"},
		{"bare d", strings.Replace(key, "#"+d+"#", "Z"+d+"!", 1), "isn't a token"},
		{"RSA of 512 bits", strings.Replace(rsaKey, element(rsaKey, "n"), "(n #"+strings.Repeat("7F", 64)+"#)", 1), "511 bits"},
		{"RSA of other n", strings.Replace(rsaKey, element(rsaKey, "n"), "(n #"+strings.Repeat("FF", 128)+"#)", 1), "don't belong together"},
		{"RSA of other d", strings.Replace(rsaKey, element(rsaKey, "d"), "(d #03#)", 1), "don't belong together"},
		{"RSA with a prime twice", strings.Replace(rsaKey, element(rsaKey, "q"), strings.Replace(primes, "(p", "(q", 1), 1), "don't belong together"},
		{"RSA with long primes", strings.Replace(rsaKey, primes, "(p #"+strings.Repeat("7F", 30_000)+"#)", 1), "don't belong together"},
		{"RSA with long d", strings.Replace(rsaKey, element(rsaKey, "d"), "(d #"+strings.Repeat("7F", 30_000)+"#)", 1), "don't belong together"},
		{"RSA without u", strings.Replace(rsaKey, element(rsaKey, "u"), "", 1), "must be of the form"},
		{"RSA with n of 0", strings.Replace(rsaKey, element(rsaKey, "n"), "(n #00#)", 1), "0 bits"},
		{"RSA with primes of 0", strings.Replace(strings.Replace(rsaKey, primes, "(p #00#)", 1), element(rsaKey, "q"), "(q #00#)", 1), "don't belong together"},
		{"RSA with a prime of 1", strings.Replace(strings.Replace(rsaKey, primes, "(p #01#)", 1), element(rsaKey, "q"), strings.Replace(element(rsaKey, "n"), "(n", "(q", 1), 1), "don't belong together"},
		{"RSA with e of 0", strings.Replace(rsaKey, "#010001#", "#00#", 1), "don't belong together"},
		{"RSA with long e", strings.Replace(rsaKey, "#010001#", "#0100000001#", 1), "exponent"},
	} {
		got, err := ParsePrivateKey([]byte(test.text))
		if err == nil || !strings.Contains(err.Error(), test.want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: got %v, %v, want %q", test.name, got != nil, err, test.want)
		}
		checkSecret(t, err, d)
	}
}

// checkSecret asserts that an error has no part of the digits of a private key.
func checkSecret(t *testing.T, err error, digits string) {
	t.Helper()
	if err == nil {
		return
	}
	message := strings.ToUpper(err.Error())
	for i := 0; i+6 <= len(digits); i++ {
		if strings.Contains(message, digits[i:i+6]) {
			t.Fatalf("%v quotes the private key", err)
		}
	}
}

// A damaged private key is refused, or is the same key; the error doesn't quote it.
func TestParsePrivateKeyDamaged(t *testing.T) {
	key := newPrivate(t)
	text := key.Private()
	d := strings.Trim(element(text, "d"), "()d #")
	same := 0
	try := func(changed string) {
		got, err := ParsePrivateKey([]byte(changed))
		checkSecret(t, err, d)
		if err != nil {
			return
		}
		same++
		if got.Private() != text {
			t.Errorf("%q was taken for a key", changed)
		}
	}
	for i := range text {
		try(text[:i])
		try(text[:i] + text[i+1:])
		for _, insert := range "()#\" \n\\;\x00x0" {
			try(text[:i] + string(insert) + text[i:])
			try(text[:i] + string(insert) + text[i+1:])
		}
		for bit := range 8 {
			b := []byte(text)
			b[i] ^= 1 << bit
			try(string(b))
		}
	}
	if same == 0 || same > 20*len(text) {
		t.Errorf("%d changes leave the same key", same)
	}
}

func TestReadPrivateKey(t *testing.T) {
	dir := t.TempDir()
	key := newPrivate(t)
	path := filepath.Join(dir, "signing-key.sec")
	if err := WriteKeyPair(key, path, filepath.Join(dir, "signing-key.pub")); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(dir, "link")
	if err := os.Symlink("signing-key.sec", link); err != nil {
		t.Fatal(err)
	}
	for _, mode := range []os.FileMode{0o600, 0o400, 0o700} {
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{path, link} {
			if got, err := ReadPrivateKey(name); err != nil || got.Private() != key.Private() {
				t.Errorf("%s with mode %04o: %v", name, mode, err)
			}
		}
	}
	for mode := os.FileMode(1); mode <= 0o77; mode++ {
		if err := os.Chmod(path, 0o600|mode); err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{path, link} {
			want := fmt.Sprintf("chmod 600 %q", name)
			if _, err := ReadPrivateKey(name); err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%s with mode %04o: %v, want %s", name, 0o600|mode, err, want)
			}
		}
	}

	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	fifo, dangling := filepath.Join(dir, "fifo"), filepath.Join(dir, "dangling")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("missing", dangling); err != nil {
		t.Fatal(err)
	}
	huge := write("huge", key.Private())
	if err := os.Truncate(huge, 1<<40); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct{ path, want string }{
		{filepath.Join(dir, "missing"), "no such file"},
		{dangling, "no such file"},
		{dir, "must be a regular file, is a directory"},
		{fifo, "must be a regular file, is a FIFO"},
		{"/dev/zero", "must be a regular file, is a device"},
		{write("empty", ""), "is empty"},
		{write("public", key.Public()), "this is a public key"},
		{write("truncated", key.Private()[:100]), "cut off"},
		{huge, "at most"},
	} {
		_, err := ReadPrivateKey(test.path)
		if err == nil || !strings.Contains(err.Error(), test.want) || !strings.Contains(err.Error(), "read private key") || strings.Count(err.Error(), test.path) != 1 {
			t.Errorf("%s: got %v, want %q", test.path, err, test.want)
		}
	}
}

func TestWriteKeyPair(t *testing.T) {
	for _, umask := range []int{0, 0o022, 0o077, 0o777} {
		dir := t.TempDir()
		private, public := filepath.Join(dir, "a.sec"), filepath.Join(dir, "a.pub")
		key := newPrivate(t)
		old := syscall.Umask(umask)
		err := WriteKeyPair(key, private, public)
		syscall.Umask(old)
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range []struct {
			path, text string
			mode       os.FileMode
		}{{private, key.Private(), 0o600}, {public, key.Public(), 0o644}} {
			info, err := os.Stat(file.path)
			if err != nil {
				t.Fatal(err)
			}
			if text, err := os.ReadFile(file.path); err != nil || string(text) != file.text || info.Mode() != file.mode {
				t.Errorf("%s: %q, %v, %v", file.path, text, err, info.Mode())
			}
		}
	}
}

// Whatever exists stays as it is, and nothing is left behind.
func TestWriteKeyPairRefuses(t *testing.T) {
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	for _, name := range []string{"other.sec", "other.pub"} {
		if err := os.WriteFile(path(name), []byte("precious"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("nothing", path("dangling")); err != nil {
		t.Fatal(err)
	}
	before := listing(t, dir)
	for _, test := range []struct{ private, public, want string }{
		{path("other.sec"), path("new.pub"), "never overwritten"},
		{path("new.sec"), path("other.pub"), "never overwritten"},
		{path("dangling"), path("new.pub"), "never overwritten"},
		{path("new.sec"), path("dangling"), "never overwritten"},
		{dir, path("new.pub"), "never overwritten"},
		{path("new"), path("./new"), "different files"},
		{path("missing/new.sec"), path("new.pub"), "no such file"},
		{path("new.sec"), path("missing/new.pub"), "no such file"},
	} {
		if err := WriteKeyPair(newPrivate(t), test.private, test.public); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s, %s: got %v, want %q", test.private, test.public, err, test.want)
		}
		if after := listing(t, dir); after != before {
			t.Errorf("%s, %s: the directory has %s, had %s", test.private, test.public, after, before)
		}
	}
}

// listing returns names and contents of a directory's files.
func listing(t *testing.T, dir string) string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for _, entry := range entries {
		text, _ := os.ReadFile(filepath.Join(dir, entry.Name()))
		fmt.Fprintf(&b, "%s %s %q\n", entry.Name(), entry.Type(), text)
	}
	return b.String()
}
