package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"text/tabwriter"
	"time"

	"github.com/crossfade-io/crossfade/bridge"
	"github.com/crossfade-io/crossfade/internal/config"
)

type healthCommand struct {
	Common config.Common `embed:"" group:"General"`
	HTTP   config.HTTP   `embed:"" group:"HTTP"`
	Output string        `enum:"text,json" default:"text" help:"Form of the answer: ${enum}."`
}

// Help is shown by --help below the summary.
func (healthCommand) Help() string {
	return `Asks /readyz of the instance that listens on this host, as a container's health check does. Exit code 0 when it is ready, 3 when it is not or does not answer.

Examples:

  crossfade health
  crossfade health --http-listen 127.0.0.1:9464 --output json`
}

// Run asks and shows the answer.
func (h *healthCommand) Run(ctx context.Context, c *console) error {
	if err := h.HTTP.Validate(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, h.HTTP.LocalURL("/readyz"), nil)
	if err != nil {
		return err
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return fmt.Errorf("%w: no instance answers on %s (is it running, and with this --http-listen?): %w", errNo, h.HTTP.Listen, err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(io.LimitReader(res.Body, 1<<20))
	if err != nil {
		return fmt.Errorf("read the answer of %s: %w", h.HTTP.Listen, err)
	}
	var r bridge.Readiness
	if err := json.Unmarshal(body, &r); err != nil {
		return fmt.Errorf("%s answers, but not as crossfade does: %w", h.HTTP.Listen, err)
	}
	if err := h.show(c, body, r); err != nil {
		return err
	}
	if !r.Ready {
		return errNo
	}
	return nil
}

func (h *healthCommand) show(c *console, body []byte, r bridge.Readiness) error {
	if h.Output == "json" {
		_, err := c.out.Write(body)
		return err
	}
	w := tabwriter.NewWriter(c.out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "PART\tSTATE\tWHY")
	for _, name := range slices.Sorted(maps.Keys(r.Checks)) {
		s := r.Checks[name]
		state := "ok"
		switch {
		case !s.OK && s.Required:
			state = "NOT READY"
		case !s.OK:
			state = "warning"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\n", name, state, s.Error)
	}
	return w.Flush()
}
