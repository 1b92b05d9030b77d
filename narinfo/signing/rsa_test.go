package signing

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"fmt"
	"math/big"
	"strings"
	"testing"
)

func rsaSexp(text string, n, e, s *big.Int) string {
	return fmt.Sprintf("(signature (data (flags pkcs1) %s) (sig-val (rsa (s #%s#))) (public-key (rsa (n #%s#) (e #%s#))))",
		hashOf(text), printedNumber(s), printedNumber(n), printedNumber(e))
}

// printedNumber writes a number like libgcrypt: with a zero before a first bit that is set.
func printedNumber(n *big.Int) string {
	b := n.Bytes()
	if len(b) > 0 && b[0] >= 0x80 {
		b = append([]byte{0}, b...)
	}
	return fmt.Sprintf("%X", b)
}

func TestRSA(t *testing.T) {
	key, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	e := big.NewInt(int64(key.E))
	sign := func(text string) *big.Int {
		hash := sha256.Sum256([]byte(text))
		s, err := rsa.SignPKCS1v15(nil, key, crypto.SHA256, hash[:])
		if err != nil {
			t.Fatal(err)
		}
		return new(big.Int).SetBytes(s)
	}
	// Repeat until one begins with a zero, which numbers omit.
	short := false
	for i := 0; !short; i++ {
		above := fmt.Sprintf("%s#%d\n", signed, i)
		s := sign(above)
		short = len(s.Bytes()) < key.Size()
		if err := check(above, rsaSexp(above, key.N, e, s)); err != nil {
			t.Fatalf("s of %d bytes: %v", len(s.Bytes()), err)
		}
		if i == 100_000 {
			t.Fatal("no signature begins with a zero")
		}
	}

	s := sign(signed)
	long := new(big.Int).Lsh(big.NewInt(1), 16384)
	long.Add(long, big.NewInt(1))
	for _, test := range []struct {
		name    string
		n, e, s *big.Int
		err     error
		message string
	}{
		{"good", key.N, e, s, nil, ""},
		{"of another text", key.N, e, sign("x"), ErrBadSignature, "didn't make"},
		{"0", key.N, e, new(big.Int), ErrBadSignature, "didn't make"},
		{"s of n", key.N, e, key.N, ErrBadSignature, "didn't make"},
		{"s the same modulo n", key.N, e, new(big.Int).Add(s, key.N), ErrBadSignature, "s"},
		{"long s", key.N, e, new(big.Int).Lsh(s, 8), ErrBadSignature, "longer than the key"},
		{"very long s", key.N, e, new(big.Int).Lsh(s, 100_000), ErrBadSignature, "longer than the key"},
		{"other n", new(big.Int).Add(key.N, big.NewInt(2)), e, s, ErrBadSignature, "didn't make"},
		{"even n", new(big.Int).Add(key.N, big.NewInt(1)), e, s, ErrBadSignature, "didn't make"},
		{"no n", new(big.Int), e, s, ErrUnknownAlgorithm, "0 bits"},
		{"short n", new(big.Int).Rsh(key.N, 1), e, s, ErrUnknownAlgorithm, "1023 bits"},
		{"longest n", new(big.Int).Sub(long, big.NewInt(2)), e, s, ErrBadSignature, "didn't make"},
		{"long n", long, e, s, ErrUnknownAlgorithm, "16385 bits"},
		{"very long n", new(big.Int).Lsh(long, 80_000), e, s, ErrUnknownAlgorithm, "bits"},
		{"e of 0", key.N, new(big.Int), s, ErrBadSignature, "didn't make"},
		{"e of 1", key.N, big.NewInt(1), s, ErrBadSignature, "didn't make"},
		{"even e", key.N, big.NewInt(65536), s, ErrBadSignature, "didn't make"},
		{"other e", key.N, big.NewInt(65539), s, ErrBadSignature, "didn't make"},
		{"largest e", key.N, big.NewInt(maxRSAExponent), s, ErrBadSignature, "didn't make"},
		{"large e", key.N, big.NewInt(maxRSAExponent + 2), s, ErrUnknownAlgorithm, "exponent"},
		{"e as large as n", key.N, new(big.Int).Sub(key.N, big.NewInt(2)), s, ErrUnknownAlgorithm, "exponent"},
	} {
		t.Run(test.name, func(t *testing.T) {
			checkVerdict(t, check(signed, rsaSexp(signed, test.n, test.e, test.s)), test.err, test.message)
		})
	}

	good := rsaSexp(signed, key.N, e, s)
	for _, test := range []struct {
		old, new string
		err      error
		message  string
	}{
		{"pkcs1", "pss", ErrUnknownAlgorithm, "pss"},
		{"pkcs1", "raw", ErrUnknownAlgorithm, "raw"},
		{"(sig-val (rsa", "(sig-val (dsa", ErrUnknownAlgorithm, "dsa"},
		{element(good, "s"), "", ErrBadSignature, "no s"},
		{"(s #", "(t #", ErrUnknownAlgorithm, `has "t" in it`},
		{element(good, "n"), "", ErrBadSignature, "no n"},
		{"(n #", "(m #", ErrUnknownAlgorithm, `has "m" in it`},
		{element(good, "e"), "", ErrBadSignature, "no e"},
		{"(e #", "(f #", ErrUnknownAlgorithm, `has "f" in it`},
		{"(s #", "(s #00", nil, ""},
		{"(n #", "(n #00", nil, ""},
	} {
		checkVerdict(t, check(signed, strings.Replace(good, test.old, test.new, 1)), test.err, test.message)
	}
}

// The maximum time for a malicious key.
func BenchmarkRSALongest(b *testing.B) {
	n := new(big.Int).SetBytes(bytes.Repeat([]byte{0xFF}, maxRSABits/8))
	sexp := rsaSexp(signed, n, big.NewInt(maxRSAExponent), big.NewInt(3))
	for b.Loop() {
		if check(signed, sexp) == nil {
			b.Fatal("it was taken")
		}
	}
}
