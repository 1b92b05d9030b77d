package main

import (
	"fmt"
	"net"
	"path/filepath"
	"time"

	"nar-herder/internal/selfsigned"
)

// tls measures narinfos and nars over HTTPS.
func (b *bench) tls() error {
	t, ours, theirs, err := b.narinfoServers(true)
	if err != nil {
		return err
	}
	err = b.compareNarinfos("narinfos over TLS", t, ours, theirs, 1.2, 0.75, 2)
	ours.stop()
	theirs.stop()
	if err != nil {
		return err
	}
	return b.nars(" over TLS", true, 0.8, 0.8)
}

// both starts nar-herder for a database and a storage, and nginx for the files in a directory. With
// TLS, both use one certificate and version 1.3.
func (b *bench) both(database, storage, root string, secure bool) (ours, theirs *server, err error) {
	var options []string
	var directives, ourAddress, theirAddress string
	if secure {
		if ourAddress, err = freeAddress(); err != nil {
			return nil, nil, err
		}
		if theirAddress, err = freeAddress(); err != nil {
			return nil, nil, err
		}
		_, port, err := net.SplitHostPort(ourAddress)
		if err != nil {
			return nil, nil, err
		}
		certificate, err := selfsigned.New(time.Now(), time.Now().AddDate(0, 0, 90), "localhost", "127.0.0.1")
		if err != nil {
			return nil, nil, err
		}
		chain, key := filepath.Join(b.work, "chain.pem"), filepath.Join(b.work, "key.pem")
		if err := certificate.Write(chain, key); err != nil {
			return nil, nil, err
		}
		options = []string{"--tls-certificate=" + chain, "--tls-key=" + key, "--tls-port=" + port}
		// The cipher is the one that nar-herder selects: otherwise, nginx would select the
		// client's favourite, which may be slower.
		directives = fmt.Sprintf(`listen %s ssl; ssl_certificate %s; ssl_certificate_key %s; ssl_protocols TLSv1.3;
			ssl_conf_command Ciphersuites TLS_AES_128_GCM_SHA256; ssl_session_cache shared:tls:10m;`, theirAddress, chain, key)
	}
	if ours, err = b.narHerder(database, storage, options...); err != nil {
		return nil, nil, err
	}
	if theirs, err = b.nginxWith(root, directives); err != nil {
		ours.stop()
		return nil, nil, err
	}
	if secure {
		ours.address, ours.secure = ourAddress, true
		theirs.address, theirs.secure = theirAddress, true
	}
	return ours, theirs, nil
}
