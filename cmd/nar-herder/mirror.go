package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"

	"nar-herder/httpapi"
	"nar-herder/internal/redact"
	"nar-herder/mirror"
	"nar-herder/mirror/nars"
	"nar-herder/narinfo"
	"nar-herder/peer"
	"nar-herder/removal"
	"nar-herder/storage/index"
	"nar-herder/storage/location"
	"nar-herder/storage/owner"
)

// beginMirror makes the database of a mirror that has none yet, while the
// listeners are answered.
func (c *serverCommand) beginMirror(ctx context.Context, listeners []net.Listener, log *slog.Logger) error {
	if c.Mirror == nil {
		return nil
	}
	if _, err := os.Stat(c.Database); !errors.Is(err, fs.ErrNotExist) {
		return nil // what else may be wrong with it, opening it will tell
	}
	if c.Storage != "" && !c.StorageReadOnly {
		bytes, err := location.Open(ctx, c.Storage, log)
		if err != nil {
			return err
		}
		if err := errors.Join(mayBegin(ctx, c.Database, bytes, owner.IfEmpty), bytes.Close()); err != nil {
			return err
		}
	}
	beginning := mirror.NewBeginning(c.Database, peer.New(c.Mirror.URL, peer.Self{AllowPrivateRedirects: c.AllowPrivateRedirects}), log)
	state := func() any {
		return struct {
			Status string       `json:"status"`
			Mirror mirrorStatus `json:"mirror"`
		}{mirror.Syncing, mirrorStatus{Status: beginning.Status()}}
	}
	return c.whileStarting(ctx, listeners, state, log, beginning.Run)
}

// whileStarting has the listeners answered with 503 until what takes its time is done.
func (c *serverCommand) whileStarting(ctx context.Context, listeners []net.Listener, state func() any, log *slog.Logger, f func(context.Context) error) error {
	for _, listener := range listeners {
		log.Info("starting; requests get 503 until then", "address", listener.Addr().String())
	}
	if c.control != nil {
		c.control.Starting(state)
		defer c.control.Starting(nil)
	}
	c.starting.SetState(state)
	defer c.starting.SetState(nil)
	notify(log, daemon.SdNotifyReady) // what waits for this would wait for too long
	if err := f(ctx); ctx.Err() == nil {
		return err
	}
	return nil // it was stopped, and the server ends at once
}

// serveStarting answers the listeners until the end is called, which may be repeated.
func (c *serverCommand) serveStarting(ctx context.Context, listeners []net.Listener, log *slog.Logger) (end func()) {
	c.starting = httpapi.NewStarting(c.PublicMetrics == "no", c.limits(), proxies(c.TrustedProxies), log)
	done, answered := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(answered)
		c.starting.Serve(ctx, done, listeners...)
	}()
	return sync.OnceFunc(func() {
		close(done)
		<-answered
	})
}

// mirrorStatus is how a mirror does, for the health.
type mirrorStatus struct {
	mirror.Status
	// Nars is nil where none are stored.
	Nars *nars.Status `json:"nars,omitempty"`
}

// follower makes what follows the instance that is mirrored, the first of the peers;
// nil for none. The fetcher, which may be nil, is told of new items.
func (c *serverCommand) follower(store *opened, peers peer.Peers, fetcher *nars.Fetcher, options *httpapi.Options, log *slog.Logger) *mirror.Mirror {
	if c.Mirror == nil {
		return nil
	}
	var wanted func([]narinfo.PathHash)
	if fetcher != nil {
		wanted = fetcher.Wanted
	}
	follower := mirror.New(mirror.Options{
		Storage: store.Storage,
		Source:  peers[0], Wanted: wanted,
		Downloads: mirror.Downloads(c.Database),
		Pinned: func(ctx context.Context) (func(narinfo.PathHash) bool, func(*index.Tx) error, error) {
			pinned, err := removal.ReadPinned(ctx, store.index)
			if err != nil {
				return nil, nil, err
			}
			return func(hash narinfo.PathHash) bool { _, kept := pinned.By(hash); return kept }, pinned.Guard, nil
		},
		Interval: time.Duration(c.MirrorInterval), Log: log,
	})
	options.Chain = follower.Chain
	options.Mirror = func() any {
		status := mirrorStatus{Status: follower.Status()}
		if fetcher != nil {
			nars := fetcher.Status()
			status.Nars = &nars
		}
		return status
	}
	return follower
}

type mirrorStatusCommand struct {
	URL    fromValue     `arg:"" placeholder:"URL" help:"The mirror, such as http://127.0.0.1:8734."`
	MaxLag durationValue `default:"5min" placeholder:"DURATION" help:"The largest lag that still counts as up to date (default: ${default})."`
	JSON   bool          `name:"json" help:"The answer as the mirror gives it."`
}

// Help is what else there is to say.
func (mirrorStatusCommand) Help() string {
	return "The exit status is 0 when the mirror is up to date, 1 when it is behind, syncing or does not follow its source, and 2 when that could not be determined, or it mirrors nothing."
}

const statusTimeout = 30 * time.Second

func (c *mirrorStatusCommand) Run(ctx context.Context, s *streams) error {
	status, text, err := c.ask(ctx)
	if err != nil {
		printf(s.err, "nar-herder: ask %s: %s\n", peer.Name(c.URL.url.URL), oneLine(err))
		return statusUnknown
	}
	lag := "unknown"
	if status.LagSeconds >= 0 {
		lag = time.Duration(status.LagSeconds * float64(time.Second)).Round(100 * time.Millisecond).String()
	}
	if c.JSON {
		_, _ = io.WriteString(redact.JSON{W: s.out}, strings.TrimSpace(text)+"\n")
	} else {
		printf(s.out, "source       %s\nstate        %s\n", status.Source, status.State)
		if status.Doing != "" {
			printf(s.out, "doing        %s\n", status.Doing)
		}
		last := "none since the start"
		if !status.LastSuccess.IsZero() {
			last = status.LastSuccess.Format(time.RFC3339)
		}
		printf(s.out, "lag          %s\nlast success %s\nbacklog      %d changes\nfailures     %d in a row\n", lag, last, status.Backlog, status.Failures)
		if status.Nars != nil {
			printf(s.out, "nars         about %d missing, %d coming\n", status.Nars.Missing, status.Nars.InFlight)
		}
		if status.PassedOver > 0 {
			printf(s.out, "passed over  %d changes that make no sense\n", status.PassedOver)
		}
		if status.Error != "" {
			printf(s.out, "last error   %s\n", status.Error)
		}
	}
	if status.State == mirror.Syncing || status.State == mirror.Refusing || status.LagSeconds < 0 || status.LagSeconds > time.Duration(c.MaxLag).Seconds() {
		return statusFailed
	}
	return nil
}

// ask asks for the health, which is not that of the mirror alone.
func (c *mirrorStatusCommand) ask(ctx context.Context) (status mirrorStatus, text string, err error) {
	ctx, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, strings.TrimSuffix(c.URL.url.String(), "/")+"/health", nil)
	if err != nil {
		return status, "", err
	}
	client := http.Client{Transport: &http.Transport{Proxy: redact.Proxy, DisableKeepAlives: true}}
	response, err := client.Do(request)
	if err != nil {
		var failure *url.Error // has the URL again, with its user
		if errors.As(err, &failure) {
			err = failure.Err
		}
		return status, "", err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(io.LimitReader(response.Body, 1<<20))
	if err != nil {
		return status, "", err
	}
	var health struct {
		Mirror *mirrorStatus `json:"mirror"`
	}
	if err := json.Unmarshal(body, &health); err != nil {
		return status, "", fmt.Errorf("the answer, %s, is not the health of a Nar Herder: %w", response.Status, err)
	}
	if health.Mirror == nil {
		return status, "", errors.New("it mirrors no other instance")
	}
	return *health.Mirror, string(body), nil
}

type mirrorAcceptLossCommand struct {
	databaseOption `embed:""`
}

// Help is what else there is to say.
func (mirrorAcceptLossCommand) Help() string {
	return "A mirror does not follow a source that has shrunk by more than a tenth, removes more than that within an hour, has gone back in time, as after a backup was put back, or dates changes ahead of the mirror's clock: it says so in its log, at /health and in its metrics. This has it follow the source for the next hour all the same. --database is that of the mirror, whose server runs on."
}

func (c *mirrorAcceptLossCommand) Run(ctx context.Context, s *streams) (err error) {
	store, err := openExisting(ctx, c.Database, "", nil)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, store.close()) }()
	if err := mirror.Accept(ctx, store.index, time.Now()); err != nil {
		return err
	}
	fmt.Fprintln(s.out, "the source is followed for the next hour, whatever it has lost")
	return nil
}
