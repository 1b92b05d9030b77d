package selfsigned

import (
	"crypto/tls"
	"crypto/x509"
	"path/filepath"
	"testing"
	"time"
)

func TestCertificate(t *testing.T) {
	now := time.Now()
	c, err := New(now.Add(-time.Hour), now.Add(time.Hour), "farm.example", "127.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	chain, key := filepath.Join(t.TempDir(), "chain.pem"), filepath.Join(t.TempDir(), "key.pem")
	if err := c.Write(chain, key); err != nil {
		t.Fatal(err)
	}
	read, err := tls.LoadX509KeyPair(chain, key)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]bool{"farm.example": true, "127.0.0.1": true, "other.example": false, "127.0.0.2": false} {
		if _, err := read.Leaf.Verify(x509.VerifyOptions{DNSName: name, Roots: c.Pool()}); (err == nil) != want {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := read.Leaf.Verify(x509.VerifyOptions{DNSName: "farm.example", Roots: c.Pool(), CurrentTime: now.Add(2 * time.Hour)}); err == nil {
		t.Error("the certificate does not expire")
	}
}
