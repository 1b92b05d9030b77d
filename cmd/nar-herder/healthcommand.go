package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"

	"nar-herder/httpapi/health"
	"nar-herder/internal/redact"
	"nar-herder/peer"
)

type healthCommand struct {
	URL instanceValue `arg:"" optional:"" default:"http://127.0.0.1:8734" placeholder:"URL" help:"URL of the server (default: ${default})."`
}

// Help is shown below the options.
func (healthCommand) Help() string {
	return "For the health check of a container. It asks for /health/ready. Exit status: 0, narinfos and nars can be read; 1, they can't, or the server is starting; 2, the server doesn't answer."
}

func (c *healthCommand) Run(ctx context.Context, s *streams) error {
	var ready struct {
		Status string `json:"status"`
	}
	code, body, err := getHealth(ctx, &c.URL, health.ReadyPath)
	if err == nil {
		if json.Unmarshal(body, &ready) != nil || ready.Status == "" {
			err = fmt.Errorf("the answer, %d %s, is not that of a Nar Herder", code, http.StatusText(code))
		}
	}
	if err != nil {
		printf(s.err, "nar-herder: ask %s: %s\n", peer.Name(c.URL.url.URL), oneLine(err))
		return statusUnknown
	}
	printf(s.out, "%s\n", redact.Visible(ready.Status))
	if code != http.StatusOK {
		return statusFailed
	}
	return nil
}
