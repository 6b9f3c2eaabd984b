package config

import (
	"fmt"
	"reflect"
	"slices"

	"github.com/alecthomas/kong"
)

// ExitCode is the exit code of a program whose configuration is bad.
const ExitCode = 2

// Options are the options for kong.New that the structs of this package need,
// for a parser of any command that embeds some of them.
func Options() []kong.Option {
	return []kong.Option{
		kong.NamedMapper("filename", kong.MapperFunc(decodeFilename)),
		kong.ValueFormatter(formatHelp),
		kong.ConfigureHelp(kong.HelpOptions{Compact: true, WrapUpperBound: 100}),
	}
}

// decodeFilename expands ~ and makes a path absolute. kong's own "path" makes the
// working directory of an empty one, which is what `${UNSET:-}` of a compose file is.
func decodeFilename(ctx *kong.DecodeContext, target reflect.Value) error {
	var path string
	if err := ctx.Scan.PopValueInto("file", &path); err != nil {
		return err
	}
	if path != "" {
		path = kong.ExpandPath(path)
	}
	target.SetString(path)
	return nil
}

// formatHelp adds a setting's range to its help, from the tag that Validate uses.
func formatHelp(value *kong.Value) string {
	help := kong.DefaultHelpValueFormatter(value)
	if r := value.Tag.Get("range"); r != "" {
		help += fmt.Sprintf(" Range: %s.", r)
	}
	return help
}

// File is the path of a configuration file. Being set, by flag or environment,
// is what makes kong load it.
type File string

// BeforeResolve reads the file and lets it answer for every flag that neither
// the command line nor the environment has set. For a value from the environment
// kong calls it whichever command is run: one that takes no configuration must not
// fail over a file that it has no use for.
func (f File) BeforeResolve(ctx *kong.Context, trace *kong.Path) error {
	if !slices.Contains(ctx.Flags(), trace.Flag) {
		return nil
	}
	path, ok := ctx.FlagValue(trace.Flag).(File)
	if !ok || path == "" {
		return nil
	}
	loaded, err := LoadFile(string(path))
	if err != nil {
		return err
	}
	ctx.AddResolver(loaded)
	return nil
}
