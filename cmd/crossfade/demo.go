package main

import (
	"context"
	"errors"
	"time"

	"github.com/crossfade-io/crossfade/internal/demo"
	"github.com/crossfade-io/crossfade/internal/options"
)

type demoCommand struct {
	Duration time.Duration `default:"30s" range:"5s..24h" help:"How long the devices publish."`
	Rate     float64       `default:"600" range:"1..100000" help:"Messages per second of all devices together."`
	Devices  int           `default:"60" range:"1..100000" help:"Devices of all tenants together."`
	Tenants  int           `default:"3" range:"1..1000" help:"Tenants, at most as many as devices."`
	Chaos    bool          `help:"Kill crossfade run with SIGKILL several times, right after flips too. The verdict waits until JetStream has delivered again what a killed process had in hand, a few seconds after the kill."`
	Keep     bool          `help:"Leave everything but the devices running after the verdict, show how to reach each part, and wait for Ctrl-C."`
	Output   string        `enum:"text,json" default:"text" help:"Form of the verdict: ${enum}. With json, the story goes to standard error."`
}

// Help is shown by --help below the summary.
func (demoCommand) Help() string {
	return `Needs Mosquitto and PostgreSQL installed (make deps) and no configuration. With DATABASE_URL set, a database is made there, and dropped at the end, instead of starting a PostgreSQL; its user must be allowed to create databases. Nothing is left running and no file behind. Ctrl-C ends early, with a verdict on what was sent until then; a second one skips that.

Exit code 0 when every message that devices sent is in the database once, 3 when not, 1 when something else went wrong.

Examples:

  crossfade demo
  crossfade demo --chaos --duration 2m --rate 3000
  crossfade demo --keep
  crossfade demo --output json | jq .lost`
}

// Validate names every flag out of range; kong calls it.
func (c demoCommand) Validate() error { return options.Flags(c.options().Validate()) }

func (c demoCommand) options() demo.Options {
	return demo.Options{Duration: c.Duration, Rate: c.Rate, Devices: c.Devices, Tenants: c.Tenants, Chaos: c.Chaos, Keep: c.Keep}
}

// Run plays the demo.
func (c *demoCommand) Run(ctx context.Context, con *console) error {
	screen, o := demo.NewScreen(con.out, con.terminal), c.options()
	o.Verdict = func(r *demo.Report) error { r.WriteText(screen); return nil }
	if c.Output == "json" {
		screen = demo.NewScreen(con.err, false)
		o.Verdict = func(r *demo.Report) error { return r.WriteJSON(con.out) }
	}
	report, err := demo.Run(ctx, o, screen)
	if report != nil && !report.OK {
		if err == nil {
			return errNo
		}
		return errors.Join(errNo, err)
	}
	return err
}
