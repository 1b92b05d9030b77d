// Package selfsigned makes certificates for tests and benchmarks.
package selfsigned

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"os"
	"time"
)

// Certificate is a certificate that is its own authority, and its key.
type Certificate struct {
	tls.Certificate
	// ChainPEM and KeyPEM are the contents of the files of a server.
	ChainPEM, KeyPEM []byte
}

// New makes a certificate for the names and addresses of a server. Each has another key and serial
// number.
func New(from, until time.Time, names ...string) (c Certificate, err error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return c, err
	}
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		return c, err
	}
	template := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: "test"}, NotBefore: from, NotAfter: until,
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	for _, name := range names {
		if address := net.ParseIP(name); address != nil {
			template.IPAddresses = append(template.IPAddresses, address)
		} else {
			template.DNSNames = append(template.DNSNames, name)
		}
	}
	signed, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return c, err
	}
	leaf, err := x509.ParseCertificate(signed)
	if err != nil {
		return c, err
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return c, err
	}
	return Certificate{
		Certificate: tls.Certificate{Certificate: [][]byte{signed}, PrivateKey: key, Leaf: leaf},
		ChainPEM:    pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: signed}),
		KeyPEM:      pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}),
	}, nil
}

// Pool returns a pool that trusts the certificate.
func (c Certificate) Pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(c.Leaf)
	return pool
}

// Write writes the files of a server.
func (c Certificate) Write(chain, key string) error {
	return errors.Join(os.WriteFile(chain, c.ChainPEM, 0o644), os.WriteFile(key, c.KeyPEM, 0o600))
}
