package main

import (
	"crypto/rand"
	"fmt"
	"strings"

	"nar-herder/narinfo/signing"
)

type keygenCommand struct {
	Private string `arg:"" name:"private" help:"File for the private key, such as signing-key.sec. Only this user can read it."`
	Public  string `arg:"" optional:"" name:"public" help:"File for the public key (default: PRIVATE with .pub in place of .sec, or else at the end)."`
}

// Help is shown below the options.
func (keygenCommand) Help() string {
	return `The keys are for ECDSA on the curve Ed25519, in the format of Guix: guix publish, guix archive and guix-daemon read them too. Existing files are never overwritten, and without both files none is kept.`
}

// publicName returns the file for the public key.
func (c *keygenCommand) publicName() string {
	if c.Public != "" {
		return c.Public
	}
	return strings.TrimSuffix(c.Private, ".sec") + ".pub"
}

func (c *keygenCommand) Run(s *streams) error {
	public := c.publicName()
	switch {
	case c.Private == "":
		return usagef("keygen: the name of the file for the private key is empty")
	case strings.HasSuffix(c.Private, ".pub"):
		return usagef("keygen: %s is named like a public key: name the file for the private key first", c.Private)
	}
	key, err := signing.GenerateKey(rand.Reader)
	if err != nil {
		return fmt.Errorf("keygen: %w", err)
	}
	if err := signing.WriteKeyPair(key, c.Private, public); err != nil {
		return fmt.Errorf("keygen: no key was written: %w", err)
	}
	_, err = printf(s.out, `private key: %[1]s: keep it secret, and a copy of it in a safe place
public key:  %[2]s: %[3]s

next: clients authorize it:    guix archive --authorize < %[2]s
      imports sign with it:    nar-herder import --sign-with=%[1]s …
      sign what is imported:   nar-herder sign --key=%[1]s --all
      the server publishes it: nar-herder run-server --signing-key=%[2]s …
`, c.Private, public, shortKey(key.Public()))
	return err
}
