package main

import (
	"crypto/sha256"
	"fmt"
	"os"
	"regexp"
	"strings"

	"nar-herder/narinfo"
	"nar-herder/narinfo/signing"
	"nar-herder/storage/resign"
)

// signerOption is the option of all commands that sign.
type signerOption struct {
	SignAs textValue `group:"keys" placeholder:"NAME" help:"Name of the signer in signatures (default: the host name of this machine)."`
}

// signer returns a signer with the private key in a file. option is the option that names the
// file.
func (o *signerOption) signer(option string, file textValue) (*resign.Signer, error) {
	if strings.Contains(string(file), "(") {
		// Don't quote it: it may be a private key.
		return nil, usagef("%s must be the name of a file with a private key, not the key itself, which other users can read in the arguments of a process: if it was the key, replace it", option)
	}
	key, err := signing.ReadPrivateKey(string(file))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", option, err)
	}
	host := string(o.SignAs)
	if host == "" {
		if host, err = os.Hostname(); err != nil {
			return nil, fmt.Errorf("find the name of this machine: %w: use --sign-as", err)
		}
	}
	if _, err := key.Sign([sha256.Size]byte{}, host); err != nil {
		return nil, usagef("--sign-as: %w", err)
	}
	return &resign.Signer{Key: key, Host: host}, nil
}

// importSigningOptions are the options of import.
type importSigningOptions struct {
	SignWith textValue `group:"keys" placeholder:"FILE" help:"Private key, as keygen writes it, to sign narinfos that have no signature. Others stay as they are."`

	signerOption `embed:""`
}

// signUnsigned returns the function that signs unsigned narinfos; nil if there is no key.
func (o *importSigningOptions) signUnsigned() (func(*narinfo.Narinfo) (*narinfo.Narinfo, error), error) {
	if o.SignWith == "" {
		return nil, nil
	}
	signer, err := o.signer("--sign-with", o.SignWith)
	if err != nil {
		return nil, err
	}
	return signer.SignUnsigned, nil
}

// keyNumber matches the number that identifies a public key.
var keyNumber = regexp.MustCompile(`\((q|n) #(?:00)?([0-9A-F]+)#\)`)

// shortKeyDigits is how many digits of a key are shown. Finding another key with the same digits
// is possible, so this is for reading only.
const shortKeyDigits = 16

// shortKey returns the type of a public key and its first digits as in the files of keys.
func shortKey(key string) string {
	match := keyNumber.FindStringSubmatch(key)
	if match == nil {
		return "of an unknown type"
	}
	kind := "Ed25519"
	if match[1] == "n" {
		kind = "RSA"
	}
	return kind + " " + match[2][:min(shortKeyDigits, len(match[2]))] + "…"
}
