package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"nar-herder/httpapi/engine"
	"nar-herder/httpapi/keypair"
)

// tlsOptions are the options of HTTPS, which the server speaks beside HTTP.
type tlsOptions struct {
	TLSCertificate string     `name:"tls-certificate" placeholder:"FILE" help:"Certificate chain for HTTPS in PEM, with the server's own certificate first. It is reloaded when the file changes."`
	TLSKey         string     `name:"tls-key" placeholder:"FILE" help:"Private key of --tls-certificate in PEM. It is reloaded when the file changes."`
	TLSPort        *portValue `name:"tls-port" placeholder:"PORT" help:"Port to listen on for HTTPS (default: no HTTPS)."`
	TLSHost        string     `name:"tls-host" placeholder:"HOST" help:"Name or address to listen on for HTTPS (default: that of --host)."`
}

// socketOfTLS is the FileDescriptorName= of sockets of systemd that are for HTTPS.
const socketOfTLS = "https"

var errNoTLSPort = errors.New("--tls-certificate needs a port: add --tls-port, such as 8443")

func (c *serverCommand) validateTLS() error {
	switch {
	case c.TLSCertificate == "" && c.TLSKey != "":
		return fmt.Errorf("--tls-key=%s needs --tls-certificate", c.TLSKey)
	case c.TLSCertificate != "" && c.TLSKey == "":
		return fmt.Errorf("--tls-certificate=%s needs --tls-key", c.TLSCertificate)
	case c.TLSCertificate == "" && c.TLSPort != nil:
		return fmt.Errorf("--tls-port=%d needs --tls-certificate and --tls-key", *c.TLSPort)
	case c.TLSCertificate != "" && c.TLSPort == nil && os.Getenv("LISTEN_FDS") == "": // see listen
		return errNoTLSPort
	case c.TLSHost != "" && c.TLSPort == nil:
		return fmt.Errorf("--tls-host=%s needs --tls-port", c.TLSHost)
	case strings.HasPrefix(c.tlsHost(), "unix:") && c.TLSPort != nil:
		return errors.New("--tls-port needs an address to listen on: add --tls-host")
	case c.TLSPort != nil && *c.TLSPort == c.Port && c.Port != 0 && c.tlsHost() == c.Host:
		return fmt.Errorf("--tls-port=%d is also --port, which is for plain HTTP: give another, such as 8443", c.Port)
	}
	return nil
}

func (c *serverCommand) tlsHost() string {
	if c.TLSHost == "" {
		return c.Host
	}
	return c.TLSHost
}

// loadCertificate reads the certificate, if there is one.
func (o tlsOptions) loadCertificate(log *slog.Logger) (*keypair.Keeper, error) {
	if o.TLSCertificate == "" {
		return nil, nil
	}
	return keypair.Load(o.TLSCertificate, o.TLSKey, log)
}

// listen returns the sockets that systemd passes, or opens one for each address of the hosts.
// Sockets for HTTPS are at the end.
func (c *serverCommand) listen(ctx context.Context, certificate *keypair.Keeper) (listeners []net.Listener, err error) {
	var secret []net.Listener
	defer func() {
		if err != nil {
			closeAll(append(listeners, secret...))
		}
	}()
	if listeners, secret, err = passedListeners(); err != nil {
		return nil, err
	}
	if len(listeners)+len(secret) == 0 {
		if listeners, err = listenOn(ctx, "", c.Host, c.Port, 0o666); err != nil {
			return nil, err
		}
	}
	switch {
	case certificate == nil && len(secret) > 0:
		return nil, usagef("systemd passed a socket named %s: add --tls-certificate and --tls-key, or give it another FileDescriptorName=", socketOfTLS)
	case certificate != nil && len(secret) == 0 && c.TLSPort == nil:
		return nil, usageError{errNoTLSPort}
	case certificate != nil && len(secret) == 0:
		if secret, err = listenOn(ctx, "tls-", c.tlsHost(), *c.TLSPort, 0); err != nil {
			return nil, err
		}
	}
	for i, listener := range secret {
		secret[i] = engine.WithTLS(listener, certificate.Config())
	}
	return append(listeners, secret...), nil
}

// onHangup calls f at each SIGHUP until the context ends. Otherwise the program ignores SIGHUP.
func onHangup(ctx context.Context, f func()) error {
	hangups := make(chan os.Signal, 1)
	signal.Notify(hangups, syscall.SIGHUP) // until the program ends: without it, SIGHUP would end the program
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-hangups:
			f()
		}
	}
}
