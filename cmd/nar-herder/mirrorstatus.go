package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"nar-herder/httpapi/health"
	"nar-herder/internal/redact"
	mirrorhealth "nar-herder/mirror/health"
	"nar-herder/peer"
)

type mirrorStatusCommand struct {
	URL    instanceValue `arg:"" placeholder:"URL" help:"URL of the mirror, such as http://127.0.0.1:8734."`
	MaxLag durationValue `group:"work" default:"5min" placeholder:"DURATION" help:"Largest lag that counts as up to date (default: ${default})."`
	JSON   bool          `group:"output" name:"json" help:"Print the JSON answer of the mirror."`
}

// Help is shown below the options.
func (mirrorStatusCommand) Help() string {
	return "Exit status: 0, the mirror is up to date; 1, it is behind, syncing, or refuses to follow its source; 2, its state is unknown, or it mirrors nothing."
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
			printf(s.out, "nars         about %d missing, %d in flight\n", status.Nars.Missing, status.Nars.InFlight)
		}
		if status.PassedOver > 0 {
			printf(s.out, "skipped      %d invalid changes\n", status.PassedOver)
		}
		if status.Refused > 0 {
			printf(s.out, "refused      %d narinfos because of their signatures\n", status.Refused)
		}
		if status.Error != "" {
			printf(s.out, "last error   %s\n", status.Error)
		}
	}
	if status.State == mirrorhealth.Syncing || status.State == mirrorhealth.Refusing || status.LagSeconds < 0 || status.LagSeconds > time.Duration(c.MaxLag).Seconds() {
		return statusFailed
	}
	return nil
}

// ask gets the health of the server, and the mirror's status in it.
func (c *mirrorStatusCommand) ask(ctx context.Context) (status mirrorStatus, text string, err error) {
	code, body, err := getHealth(ctx, &c.URL, health.Path)
	if err != nil {
		return status, "", err
	}
	var answer struct {
		Mirror *mirrorStatus `json:"mirror"`
	}
	if err := json.Unmarshal(body, &answer); err != nil {
		return status, "", fmt.Errorf("the answer, %d %s, is not a health report of a Nar Herder: %w", code, http.StatusText(code), err)
	}
	if answer.Mirror == nil {
		return status, "", errors.New("this server mirrors no instance")
	}
	return *answer.Mirror, string(body), nil
}

// getHealth gets one of the paths of package health from a server.
func getHealth(ctx context.Context, server *instanceValue, path string) (code int, body []byte, err error) {
	ctx, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, strings.TrimSuffix(server.url.String(), "/")+path, nil)
	if err != nil {
		return 0, nil, err
	}
	client := http.Client{Transport: &http.Transport{Proxy: redact.Proxy, DisableKeepAlives: true}}
	response, err := client.Do(request)
	if err != nil {
		var failure *url.Error // repeats the URL, with its user
		if errors.As(err, &failure) {
			err = failure.Err
		}
		return 0, nil, err
	}
	defer response.Body.Close()
	body, err = io.ReadAll(io.LimitReader(response.Body, 1<<20))
	return response.StatusCode, body, err
}
