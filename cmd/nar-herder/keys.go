package main

import (
	"fmt"
	"io"
	"os"
	"syscall"

	"nar-herder/narinfo/signing"
)

// keyOptions are the keys that may sign narinfos.
type keyOptions struct {
	ACL           string   `name:"acl" placeholder:"FILE" help:"Access control list with the authorized keys, such as /etc/guix/acl."`
	AuthorizedKey []string `sep:"none" placeholder:"FILE" help:"Authorized public key, such as signing-key.pub. May be repeated."`
}

// keys reads the authorized keys; nil if no option is given.
func (o *keyOptions) keys() (*signing.Keys, error) {
	var keys *signing.Keys
	add := func(option, name string) error {
		text, err := readKeys(name)
		if err != nil {
			return fmt.Errorf("%s: %w", option, err)
		}
		more, err := signing.ParseKeys(text)
		if err != nil {
			return usagef("%s=%s: %w", option, name, err)
		}
		if keys == nil {
			keys = new(signing.Keys)
		}
		keys.Add(more)
		return nil
	}
	if o.ACL != "" {
		if err := add("--acl", o.ACL); err != nil {
			return nil, err
		}
	}
	for _, name := range o.AuthorizedKey {
		if err := add("--authorized-key", name); err != nil {
			return nil, err
		}
	}
	return keys, nil
}

func readKeys(name string) ([]byte, error) {
	file, err := os.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0) // a pipe must not block
	if err != nil {
		return nil, err
	}
	defer file.Close()
	return io.ReadAll(io.LimitReader(file, signing.MaxKeysSize+1))
}
