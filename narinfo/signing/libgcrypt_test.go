package signing

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"math/big"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"filippo.io/edwards25519"

	"nar-herder/internal/rounds"
	"nar-herder/narinfo/signing/sexp"
)

// libgcrypt is the program testdata/libgcrypt.c: the implementation that Guix uses.
type libgcrypt struct {
	in  io.Writer
	out *bufio.Reader
}

// newLibgcrypt compiles and starts it.
func newLibgcrypt(t *testing.T) *libgcrypt {
	t.Helper()
	program := filepath.Join(t.TempDir(), "libgcrypt")
	build := exec.Command("gcc", "-O1", "-o", program, "testdata/libgcrypt.c", "-lgcrypt", "-lgpg-error")
	if output, err := build.CombinedOutput(); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatalf("%v: %s", err, output)
		}
		t.Skipf("needs gcc and libgcrypt; on Debian, apt-get install gcc libgcrypt20-dev: %v: %.500s", err, output)
	}
	command := exec.Command(program)
	command.Stderr = os.Stderr
	in, err := command.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := command.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		in.Close()
		if err := command.Wait(); err != nil {
			t.Errorf("libgcrypt: %v", err)
		}
	})
	return &libgcrypt{in, bufio.NewReader(out)}
}

// ask sends a request and returns the answer's texts, or its reason as an error.
func (l *libgcrypt) ask(t *testing.T, word string, texts ...string) ([]string, error) {
	t.Helper()
	line := word
	for _, text := range texts {
		// As string->canonical-sexp in Guile-Gcrypt.
		var b []byte
		for _, r := range text {
			b = append(b, byte(r))
		}
		line += " " + hex.EncodeToString(b)
	}
	if _, err := io.WriteString(l.in, line+"\n"); err != nil {
		t.Fatal(err)
	}
	answer, err := l.out.ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	words := strings.Split(strings.TrimSuffix(answer, "\n"), " ")
	if words[0] != "ok" {
		return nil, fmt.Errorf("libgcrypt: %s", strings.TrimSuffix(answer, "\n"))
	}
	for i, word := range words {
		b, _ := hex.DecodeString(word)
		var s strings.Builder
		for _, c := range b {
			s.WriteRune(rune(c))
		}
		words[i] = s.String()
	}
	return words[1:], nil
}

// must is ask without an error.
func (l *libgcrypt) must(t *testing.T, word string, texts ...string) []string {
	t.Helper()
	answer, err := l.ask(t, word, texts...)
	if err != nil {
		t.Fatalf("%s %q: %v", word, texts, err)
	}
	return answer
}

// seeded returns a source of random numbers, and prints its seed.
func seeded(t *testing.T) *rand.ChaCha8 {
	t.Helper()
	var seed [32]byte
	for i := range seed {
		seed[i] = byte(rand.Uint32())
	}
	if text := os.Getenv("NAR_HERDER_SEED"); text != "" {
		if _, err := hex.Decode(seed[:], []byte(text)); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("NAR_HERDER_SEED=%x", seed)
	return rand.NewChaCha8(seed)
}

// data returns what Guix signs, (data …).
func data(flag string, hash [sha256.Size]byte) string {
	return fmt.Sprintf("(data (flags %s) (hash \"sha256\" #%x#))", flag, hash)
}

// samePrinted reports whether texts are equal. libgcrypt before 1.11 prints a NUL that isn't
// the first byte as an escape, and later versions print a hexadecimal string.
func samePrinted(t *testing.T, a, b string) bool {
	t.Helper()
	if !strings.Contains(a+b, `\x00`) {
		return a == b
	}
	first, err := sexp.Parse(a)
	if err != nil {
		t.Fatal(err)
	}
	second, err := sexp.Parse(b)
	if err != nil {
		t.Fatal(err)
	}
	return first.Print() == second.Print()
}

// checkBoth asserts that libgcrypt makes the same signature of a random hash with the same
// key, and that both accept it, and that neither accepts it for another hash.
func checkBoth(t *testing.T, l *libgcrypt, random *rand.ChaCha8, key *PrivateKey, flag string) {
	t.Helper()
	var hash [sha256.Size]byte
	random.Read(hash[:])
	switch random.Uint64() % 16 {
	case 0:
		hash[0] = 0 // its number is shorter
	case 1:
		for i := range hash {
			hash[i] = 'a' + hash[i]%26 // it is printed as a token
		}
	case 2:
		for i := range hash {
			hash[i] |= 0xF8 // above n
		}
	}
	made, err := key.Sign(hash, "host.example")
	if err != nil {
		t.Fatal(err)
	}
	decoded, err := decodeSignature(made)
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := parseSignature(decoded)
	if err != nil {
		t.Fatal(err)
	}
	want := l.must(t, "sign", key.Private(), key.Public(), data(flag, hash))[0]
	if !samePrinted(t, parsed.Print(), want) {
		t.Errorf("key %s hash %x: got %s, libgcrypt makes %s", key.Private(), hash, parsed.Print(), want)
	}
	l.must(t, "verify", parsed.Print())
	keys, err := ParseKeys([]byte(key.Public()))
	if err != nil {
		t.Fatal(err)
	}
	for _, signature := range []string{made, fieldOf(want)} {
		if err := Verify(signature, hash, keys); err != nil {
			t.Errorf("key %s: %v", key.Private(), err)
		}
	}
	other := hash
	other[31] ^= 8
	changed := strings.Replace(parsed.Print(), sexp.NewAtom(hash[:]).Atom, sexp.NewAtom(other[:]).Atom, 1)
	if _, err := l.ask(t, "verify", changed); err == nil {
		t.Errorf("libgcrypt accepts %s", changed)
	}
	checkVerdict(t, Verify(fieldOf(changed), other, keys), ErrInvalid, "didn't make")
}

func TestLibgcryptECDSA(t *testing.T) {
	l, random := newLibgcrypt(t), seeded(t)
	for range rounds.Of(150) {
		// Ours.
		key, err := GenerateKey(random)
		if err != nil {
			t.Fatal(err)
		}
		if printed := l.must(t, "print", key.Private())[0]; !samePrinted(t, printed, key.Private()) {
			t.Errorf("got %q, libgcrypt prints %q", key.Private(), printed)
		}
		checkBoth(t, l, random, key, flagECDSA)

		// libgcrypt's.
		pair := l.must(t, "genkey", "(genkey (ecdsa (curve Ed25519) (flags rfc6979)))")
		key, err = ParsePrivateKey([]byte(pair[0]))
		if err != nil {
			t.Fatalf("%s: %v", pair[0], err)
		}
		if !samePrinted(t, key.Private(), pair[0]) || !samePrinted(t, key.Public(), pair[1]) {
			t.Errorf("got %s and %s, want %s and %s", key.Private(), key.Public(), pair[0], pair[1])
		}
		checkBoth(t, l, random, key, flagECDSA)
	}
	// Numbers that other programs may have chosen: short, and below, near and above n.
	for _, d := range []string{"01", "02", "FFFF", "00FF00", groupOrder.Text(16), "7F" + strings.Repeat("FF", 31), "0080" + strings.Repeat("00", 31), "00" + strings.Repeat("FF", 32)} {
		if len(d)%2 != 0 {
			d = "0" + d
		}
		b, err := hex.DecodeString(d)
		if err != nil {
			t.Fatal(err)
		}
		for _, offset := range []byte{0, 1} {
			b[len(b)-1] ^= offset
			q, err := publicOf(b)
			if err != nil {
				continue // n itself
			}
			key, err := newECDSAPrivate(q, b)
			if err != nil {
				t.Fatal(err)
			}
			checkBoth(t, l, random, key, flagECDSA)
		}
	}
}

func TestLibgcryptRSA(t *testing.T) {
	l, random := newLibgcrypt(t), seeded(t)
	for i := range rounds.Of(10) {
		bits := 1024 + 8*(i%128)
		pair := l.must(t, "genkey", fmt.Sprintf("(genkey (rsa (nbits %d:%d)))", len(fmt.Sprint(bits)), bits))
		key, err := ParsePrivateKey([]byte(pair[0]))
		if err != nil {
			t.Fatalf("%s: %v", pair[0], err)
		}
		if key.Private() != pair[0] || key.Public() != pair[1] {
			t.Errorf("got %s and %s, want %s and %s", key.Private(), key.Public(), pair[0], pair[1])
		}
		for range 20 {
			checkBoth(t, l, random, key, flagRSA)
		}
	}
}

// Bytes in all places that decide on the printed form.
func TestLibgcryptPrints(t *testing.T) {
	l, random := newLibgcrypt(t), seeded(t)
	for i := range 1 << 12 {
		value := []byte{byte(i >> 4), byte(i), byte(random.Uint64())}[:1+i%3]
		if bytes.IndexByte(value, 0) > 0 {
			continue // see samePrinted
		}
		printed := sexp.NewList("a", sexp.NewAtom(value), sexp.NewList("b", sexp.Expr{Atom: "c"}), sexp.NewAtom(value[:i%2]), sexp.NewList("d")).Print()
		if got := l.must(t, "print", printed)[0]; !samePrinted(t, got, printed) {
			t.Fatalf("%x: got %q, libgcrypt prints %q", value, printed, got)
		}
		hexadecimal := fmt.Sprintf("(a #%x#)", value)
		parsed, err := sexp.Parse(hexadecimal)
		if err != nil {
			t.Fatal(err)
		}
		if got := l.must(t, "print", hexadecimal)[0]; !samePrinted(t, got, parsed.Print()) {
			t.Fatalf("%x: got %q, libgcrypt prints %q", value, parsed.Print(), got)
		}
	}
}

// Damaged s-expressions: what is accepted, libgcrypt accepts too, and reads in the same way.
func TestLibgcryptReads(t *testing.T) {
	l, random := newLibgcrypt(t), rand.New(seeded(t))
	seeds := []string{
		newTestSigner(1).sign(signed), newPrivate(t).Private(), newPrivate(t).Public(), "(acl (entry " + key1 + tag + "))",
		`(a "b\n\x41\\\"\'" #414243# - "" c (d (e)) f#00#"g"(h))`,
	}
	const inserted = "()#\"\\ \n\t\v\f\rx0aZ9;:*|[]{}%&!\x00\u00e4"
	accepted := 0
	for range rounds.Of(10_000) {
		text := []rune(seeds[random.IntN(len(seeds))])
		for range 1 + random.IntN(3) {
			at := random.IntN(len(text))
			insert := []rune(inserted)[random.IntN(len([]rune(inserted)))]
			switch random.IntN(3) {
			case 0:
				text[at] = insert
			case 1:
				text = slices.Insert(text, at, insert)
			case 2:
				text = slices.Delete(text, at, at+1)
			}
		}
		tree, err := sexp.Parse(string(text))
		if err != nil {
			continue
		}
		accepted++
		printed := tree.Print()
		if strings.Contains(printed, "00") {
			continue // maybe a NUL, see samePrinted
		}
		if got, err := l.ask(t, "print", string(text)); err != nil || !samePrinted(t, got[0], printed) {
			t.Errorf("%q: got %q, libgcrypt prints %q, %v", string(text), printed, got, err)
		}
	}
	if accepted < 1000 {
		t.Errorf("only %d were accepted", accepted)
	}
}

// Numbers and points that no signer makes: both accept the same signatures.
func TestLibgcryptAgrees(t *testing.T) {
	l, random := newLibgcrypt(t), rand.New(seeded(t))
	accepted, refused := 0, 0
	for range rounds.Of(150) {
		key := newTestSigner(byte(random.IntN(256)))
		above := fmt.Sprintf("%s#%d\n", signed, random.Uint64())
		sexp := key.sign(above)
		number := func(name string) *big.Int {
			digits := strings.Trim(element(sexp, name), "()rs #")
			n, _ := new(big.Int).SetString(digits, 16)
			switch random.IntN(16) {
			case 0:
				n.Add(n, curveOrder)
			case 1:
				n.Sub(curveOrder, n)
			case 2:
				n.SetInt64(random.Int64N(3))
			case 3:
				n.Sub(curveOrder, big.NewInt(random.Int64N(3)))
			}
			return n
		}
		r, s := number("r"), number("s")
		q := timesBase(key.d)
		switch random.IntN(4) {
		case 0:
			q.Negate(q)
		case 1:
			b, err := hex.DecodeString(smallOrder[random.IntN(len(smallOrder))])
			if err != nil {
				t.Fatal(err)
			}
			point, err := new(edwards25519.Point).SetBytes(b)
			if err != nil {
				t.Fatal(err)
			}
			q.Add(q, point)
		}
		text := ecdsaSexp(above, q.Bytes(), r, s)
		for range usesForTable + 1 { // without and with a table
			err := check(above, text)
			if _, want := l.ask(t, "verify", text); (err == nil) != (want == nil) {
				t.Fatalf("%s: %v, libgcrypt: %v", text, err, want)
			}
			if err == nil {
				accepted++
			} else {
				refused++
			}
		}
	}
	if accepted < refused/8 || refused < accepted/8 {
		t.Errorf("%d were accepted, %d refused", accepted, refused)
	}
}
