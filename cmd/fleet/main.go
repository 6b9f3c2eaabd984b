// Command fleet plays a fleet of devices against an MQTT broker, and judges
// afterwards what a database holds of what they sent. See package
// internal/fleet for what the devices send and what the verdict means.
//
// Exit codes: 0 clean, 1 error, 2 usage, 3 the reconciliation failed.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/alecthomas/kong"
	"golang.org/x/term"

	"github.com/crossfade-io/crossfade/internal/fleet"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	// The first signal ends the run politely; a second one finds the default
	// handler and skips the wait.
	context.AfterFunc(ctx, stop)
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

const (
	exitClean = iota
	exitError
	exitUsage
	exitNotReconciled
)

// errNotReconciled says that the report, which has been printed, is not OK.
var errNotReconciled = errors.New("the database does not hold exactly what was sent")

type cli struct {
	Run       runCmd       `cmd:"" default:"withargs" help:"Publish for a fleet of devices until --duration is over, --messages are sent or a signal comes (default command)."`
	Reconcile reconcileCmd `cmd:"" help:"Compare the record of an earlier run with a database."`
}

const description = `Play a fleet of devices, keep a record of what the broker acknowledged, and compare it with what a database holds.

Examples:

  fleet --broker mqtt://127.0.0.1:1883 --duration 30s
  fleet --broker mqtt://127.0.0.1:1883 --database-url postgres://localhost/iot --register --reconcile --duration 1m
  fleet --broker mqtts://broker:8883 --tls-ca ca.pem --user fleet --devices 1000 --rate 5000 --connections 8 --record sent.jsonl
  fleet --broker mqtt://127.0.0.1:1883 --record sent.jsonl --resume --duration 30s
  fleet reconcile sent.jsonl --database-url postgres://localhost/iot --output json

Exit codes: 0 clean, 1 error, 2 usage, 3 the reconciliation failed.`

// console is where a command talks to people and programs.
type console struct {
	out      io.Writer
	err      io.Writer
	terminal bool // err is one: progress is welcome
	log      *slog.Logger
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	var c cli
	exited, code := false, 0
	parser, err := kong.New(&c, kong.Name("fleet"), kong.Description(description),
		kong.Writers(stdout, stderr), defaults(),
		kong.Exit(func(status int) { exited, code = true, status }))
	if err != nil {
		fmt.Fprintln(stderr, "fleet:", err)
		return exitError
	}
	parsed, err := parser.Parse(args)
	if exited { // --help
		return code
	}
	if err != nil {
		fmt.Fprintf(stderr, "fleet: %v (see fleet --help)\n", err)
		return exitUsage
	}
	con := &console{out: stdout, err: stderr, log: slog.New(slog.NewTextHandler(stderr, nil))}
	if f, ok := stderr.(*os.File); ok {
		con.terminal = term.IsTerminal(int(f.Fd()))
	}
	parsed.BindTo(ctx, (*context.Context)(nil))
	err = parsed.Run(con)
	var usage usageError
	switch {
	case err == nil:
		return exitClean
	case errors.Is(err, errNotReconciled):
		fmt.Fprintln(stderr, "fleet:", err)
		return exitNotReconciled
	case errors.As(err, &usage):
		fmt.Fprintln(stderr, err)
		return exitUsage
	}
	fmt.Fprintln(stderr, err)
	return exitError
}

// defaults shows the package's own defaults in --help, so they cannot differ.
func defaults() kong.Vars {
	d := fleet.DefaultConfig()
	return kong.Vars{
		"tenants": fmt.Sprint(d.Tenants), "devices": fmt.Sprint(d.Devices), "seed": fmt.Sprint(d.Seed),
		"rate": fmt.Sprint(d.Rate), "inflight": fmt.Sprint(d.MaxInflight), "drain": d.DrainTimeout.String(),
		"timeless": fmt.Sprint(d.Shares.Timeless), "heartbeat": fmt.Sprint(d.Shares.Heartbeat), "shadow": fmt.Sprint(d.Shares.Shadow),
	}
}

// usageError is a mistake on the command line that only shows once the flags
// are seen together.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }
