package main

import (
	"fmt"
	"os"
	"slices"

	"github.com/crossfade-io/crossfade/internal/config"
)

type configCommand struct {
	Check configCheckCommand `cmd:"" help:"Validate the configuration and show where every setting comes from, without starting anything."`
}

type configCheckCommand struct {
	Config config.Run `embed:""`
	Output string     `enum:"text,json" default:"text" help:"Form of the answer: ${enum}."`
}

// Help is shown by --help below the summary.
func (configCheckCommand) Help() string {
	return `Takes the same settings as crossfade run. Secrets are never shown. Exit code 2 means that crossfade run would refuse to start.

Examples:

  crossfade config check --config crossfade.yaml
  crossfade config check --config crossfade.yaml --output json`
}

// Run shows the check of a configuration that could be parsed.
func (r *configCheckCommand) Run(c *console) error {
	check := config.NewCheck(c.parsed, &r.Config)
	check.Warnings = append(check.Warnings, unknownEnvironment()...)
	return r.show(c, check)
}

func (r *configCheckCommand) show(c *console, check config.Check) error {
	write := check.WriteText
	if r.Output == "json" {
		write = check.WriteJSON
	}
	if err := write(c.out); err != nil {
		return fmt.Errorf("write the answer: %w", err)
	}
	if !check.OK {
		return errRefused
	}
	return nil
}

// wantsCheck tells, of arguments that could not be parsed, whether they ask for a
// check: then the reason is the answer.
func wantsCheck(args []string) bool {
	at := slices.Index(args, "config")
	return at >= 0 && slices.Contains(args[at:], "check")
}

func (r *configCheckCommand) failed(c *console, args []string, err error) int {
	if slices.Contains(args, "--output=json") || slices.Contains(args, "json") {
		r.Output = "json"
	}
	_ = r.show(c, config.FailedCheck(err)) // the answer says it all, and the code is the same
	return exitUsage
}

func unknownEnvironment() []string { return config.UnknownEnvironment(os.Environ()) }
