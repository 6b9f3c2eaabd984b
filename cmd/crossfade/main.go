// Command crossfade moves an IoT platform's ingest from MQTT to NATS JetStream,
// tenant by tenant, with the way back always open.
//
// Exit codes: 0 done, 1 error, 2 usage or configuration, 3 the answer is no
// (not ready, not reached in time, not reconciled), 4 not the revision expected.
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

	"github.com/crossfade-io/crossfade/internal/config"
	"github.com/crossfade-io/crossfade/internal/devstack"
)

func main() {
	devstack.RunChild() // the demo's NATS server is this program too
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	// The first signal stops gracefully; a second one finds the default handler
	// and skips the wait.
	context.AfterFunc(ctx, stop)
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

const (
	exitDone = iota
	exitError
	exitUsage
	exitNo
	exitStale
)

// Errors that only choose the exit code, since the answer has been printed.
var (
	errNo      = errors.New("no")      // 3
	errRefused = errors.New("refused") // 2
)

type cli struct {
	Run        runCommand        `cmd:"" help:"Run an instance: take messages in from MQTT and JetStream, write them to PostgreSQL."`
	Demo       demoCommand       `cmd:"" help:"Show it all on private servers with simulated devices, and prove that nothing was lost or doubled."`
	Migrate    migrateCommand    `cmd:"" help:"Bring the database's tables up to date, or adopt a database that has them."`
	Status     statusCommand     `cmd:"" help:"Show every tenant's wished and actual stage, and the instances."`
	Flip       flipCommand       `cmd:"" help:"Wish a stage for tenants: jetstream to move them, mqtt to bring them back."`
	Rollback   rollbackCommand   `cmd:"" help:"Give MQTT its authority back at once, ahead of everything else."`
	Rollout    rolloutCommand    `cmd:"" help:"Move many tenants wave by wave, and look at each wave before the next."`
	Hold       holdCommand       `cmd:"" help:"Keep tenants in the stage in which they are."`
	Release    releaseCommand    `cmd:"" help:"End a hold."`
	History    historyCommand    `cmd:"" help:"Show who changed stages, why, and on what evidence."`
	Forget     forgetCommand     `cmd:"" help:"Stop waiting for the MQTT session of an instance that will not return."`
	Distrust   distrustCommand   `cmd:"" help:"Have every stage proved anew, when an older state of PostgreSQL was brought back."`
	Config     configCommand     `cmd:"" help:"Look at the configuration without starting."`
	Quarantine quarantineCommand `cmd:"" help:"Look at quarantined messages, replay or delete them."`
	Downlink   downlinkCommand   `cmd:"" help:"Look at messages to devices that wait or are parked, retry or drop them."`
	Token      tokenCommand      `cmd:"" help:"Make, list and revoke back ends' tokens for the HTTP API."`
	Health     healthCommand     `cmd:"" help:"Ask the instance on this host whether it is ready."`
	Bench      benchCommand      `cmd:"" help:"Measure how fast a JetStream backlog reaches PostgreSQL, against what the parts can do alone."`
	Version    versionCommand    `cmd:"" help:"Print the version."`
}

const description = `Crossfade moves an IoT platform's ingest from an MQTT subscription to NATS JetStream, one tenant at a time, with the way back always open. No message is lost or takes effect twice.

Examples:

  crossfade demo
  crossfade migrate --database-url postgres://localhost/iot
  crossfade config check --config crossfade.yaml
  crossfade run --config crossfade.yaml
  crossfade flip acme jetstream --reason "wave 1" --wait
  crossfade status --watch
  crossfade rollback acme

Exit codes: 0 done, 1 error, 2 usage or configuration, 3 the answer is no (not ready, not reached, not reconciled), 4 not the revision expected.`

// console is where a command talks to people and programs.
type console struct {
	out      io.Writer
	err      io.Writer
	terminal bool // out is one: colour and progress are welcome
	parsed   *kong.Context
}

// logger returns the log on standard error that the settings ask for.
func (c *console) logger(s config.Common) *slog.Logger {
	level := map[string]slog.Level{"debug": slog.LevelDebug, "warn": slog.LevelWarn, "error": slog.LevelError}[s.LogLevel]
	o := &slog.HandlerOptions{Level: level}
	if s.LogFormat == "json" {
		return slog.New(slog.NewJSONHandler(c.err, o))
	}
	return slog.New(slog.NewTextHandler(c.err, o))
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	var c cli
	exited, code := false, 0
	options := append(config.Options(), kong.Name("crossfade"), kong.Description(description),
		kong.Writers(stdout, stderr), kong.Vars{"stages": "mqtt, shadow, live, jetstream"},
		kong.Exit(func(status int) { exited, code = true, status }))
	parser, err := kong.New(&c, options...)
	if err != nil {
		fmt.Fprintln(stderr, "crossfade:", err)
		return exitError
	}
	parsed, err := parser.Parse(args)
	if exited { // --help
		return code
	}
	con := &console{out: stdout, err: stderr, parsed: parsed}
	if f, ok := stdout.(*os.File); ok {
		con.terminal = term.IsTerminal(int(f.Fd()))
	}
	if err != nil {
		if wantsCheck(args) {
			return c.Config.Check.failed(con, args, err)
		}
		fmt.Fprintf(stderr, "crossfade: %v\nsee crossfade --help\n", err)
		return exitUsage
	}
	parsed.BindTo(ctx, (*context.Context)(nil))
	return exitCode(unjoined(parsed.Run(con)), stderr)
}

// unjoined takes a single error out of the join that kong puts around it.
func unjoined(err error) error {
	if joined, ok := err.(interface{ Unwrap() []error }); ok && len(joined.Unwrap()) == 1 {
		return joined.Unwrap()[0]
	}
	return err
}

func exitCode(err error, stderr io.Writer) int {
	var bad *config.Error
	var usage usageError
	switch {
	case err == nil:
		return exitDone
	case err == errNo:
		return exitNo
	case err == errRefused:
		return exitUsage
	}
	fmt.Fprintln(stderr, "crossfade:", err)
	switch {
	case errors.As(err, &bad), errors.As(err, &usage):
		return exitUsage
	case errors.Is(err, errNo):
		return exitNo
	case errors.Is(err, errStale):
		return exitStale
	}
	return exitError
}

// usageError is a mistake on the command line that only shows once the arguments
// are seen together.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

// version is set by the linker.
var version = "dev"

type versionCommand struct{}

// Run prints the version.
func (versionCommand) Run(c *console) error {
	_, err := fmt.Fprintln(c.out, "crossfade", version)
	return err
}
