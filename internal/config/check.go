package config

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/alecthomas/kong"
)

// Source says where a setting's value came from.
type Source string

// The sources, the strongest first.
const (
	SourceFlag    Source = "flag"
	SourceEnv     Source = "env"
	SourceFile    Source = "file"
	SourceDefault Source = "default"
)

// Entry is one setting with its value. It is fit to be shown: a secret's value
// is "[redacted]" where it is set, and empty where not.
type Entry struct {
	Flag   string `json:"flag"`
	Env    string `json:"env"`
	Key    string `json:"key,omitempty"`
	Value  any    `json:"value"` // text, number, bool or list of texts; durations as text
	Source Source `json:"source"`
	Origin string `json:"origin,omitempty"` // the variable, or path:line of the file
	Group  string `json:"-"`
}

// Check is what `crossfade config check` shows: every setting of the command
// with its source, what is wrong, and what should be known. It holds no secrets.
type Check struct {
	OK       bool      `json:"ok"`
	Settings []Entry   `json:"settings"`
	Problems []Problem `json:"problems"`
	Warnings []string  `json:"warnings"`
}

// NewCheck describes the configuration r, which kong has parsed in ctx.
func NewCheck(ctx *kong.Context, r *Run, options ...ValidateOption) Check {
	c := Check{Settings: entries(ctx), Problems: []Problem{}, Warnings: []string{}}
	var bad *Error
	if errors.As(r.Validate(options...), &bad) {
		c.Problems = bad.Problems
	}
	c.OK = len(c.Problems) == 0
	c.Warnings = append(c.Warnings, r.Warnings()...)
	for _, e := range c.Settings {
		if s := model().byFlag[e.Flag]; s.Secret && e.Source == SourceFlag {
			c.Warnings = append(c.Warnings, names(e.Flag)+
				": was given on the command line, which every user of this host can read; use the environment or a file")
		}
	}
	c.Warnings = append(c.Warnings, UnknownEnvironment(os.Environ())...)
	return c
}

// FailedCheck is the Check of a configuration that could not even be parsed:
// err is what kong's Parse returned.
func FailedCheck(err error) Check {
	c := Check{Settings: []Entry{}, Warnings: UnknownEnvironment(os.Environ())}
	var bad *Error
	if errors.As(err, &bad) {
		c.Problems = bad.Problems
	} else {
		c.Problems = []Problem{{Setting: "command line or environment", Wrong: err.Error(), Remedy: "see --help"}}
	}
	if c.Warnings == nil {
		c.Warnings = []string{}
	}
	return c
}

// Err returns nil, or an [*Error] with the problems.
func (c Check) Err() error { return (&problems{list: c.Problems}).err() }

// entries lists the settings of the selected command, in its order.
func entries(ctx *kong.Context) []Entry {
	var list []Entry
	file := fileOf(ctx)
	for _, flag := range ctx.Flags() {
		s, known := model().byFlag[flag.Name]
		if !known {
			continue
		}
		e := Entry{Flag: s.Flag, Env: s.Env[0], Key: s.Key, Group: s.Group,
			Value: shown(flag.Target.Interface()), Source: SourceDefault}
		if name := envOf(flag.Envs); name != "" {
			e.Source, e.Origin = SourceEnv, name
		}
		for _, p := range ctx.Path {
			if p.Flag != flag {
				continue
			}
			e.Source, e.Origin = SourceFlag, ""
			if p.Resolved {
				e.Source = SourceFile
				if file != nil {
					e.Origin = fmt.Sprintf("%s:%d", file.path, file.values[s.Key].line)
				}
			}
		}
		list = append(list, e)
	}
	return list
}

// fileOf reads the configuration file again, for line numbers only: kong keeps
// no way back to its resolvers. It returns nil where there is none.
func fileOf(ctx *kong.Context) *LoadedFile {
	for _, flag := range ctx.Flags() {
		path, ok := flag.Target.Interface().(File)
		if !ok || path == "" {
			continue
		}
		if file, err := LoadFile(string(path)); err == nil {
			return file
		}
	}
	return nil
}

// shown returns a value as it may be printed and marshalled.
func shown(value any) any {
	switch v := value.(type) {
	case Secret:
		return v.String()
	case Endpoint:
		return v.String()
	case []Endpoint:
		list := make([]string, len(v))
		for i, e := range v {
			list[i] = e.String()
		}
		return list
	case []string:
		return append([]string{}, v...)
	case time.Duration:
		return v.String()
	case File:
		return string(v)
	}
	return value
}

// Redacted returns the values of a struct of settings by YAML key, fit to be
// logged: for the debug line at start.
func Redacted(target any) map[string]any {
	parser, err := kong.New(target, append(Options(), kong.NoDefaultHelp())...)
	if err != nil {
		panic("config: struct tags: " + err.Error())
	}
	values := map[string]any{}
	for _, flag := range parser.Model.Flags {
		if key := keyOf(flag.Name); key != "" {
			values[key] = shown(flag.Target.Interface())
		}
	}
	return values
}

// Redacted returns all settings by YAML key, fit to be logged.
func (r *Run) Redacted() map[string]any { return Redacted(r) }

// LogValue logs all settings by YAML key, without secrets.
func (r *Run) LogValue() slog.Value { return slog.AnyValue(r.Redacted()) }

// WriteJSON writes the check as indented JSON.
func (c Check) WriteJSON(w io.Writer) error {
	encoder := json.NewEncoder(w)
	encoder.SetEscapeHTML(false)
	encoder.SetIndent("", "  ")
	return encoder.Encode(c)
}

// WriteText writes the check for people: settings by group, then problems and
// warnings, then the verdict.
func (c Check) WriteText(w io.Writer) error {
	var b strings.Builder
	table := tabwriter.NewWriter(&b, 0, 4, 2, ' ', 0)
	group := ""
	for _, e := range c.Settings {
		if e.Group != group {
			group = e.Group
			fmt.Fprintf(table, "%s\n", group)
		}
		origin := string(e.Source)
		if e.Origin != "" {
			origin += " " + e.Origin
		}
		fmt.Fprintf(table, "  --%s\t%s\t%s\n", e.Flag, valueText(e.Value), origin)
	}
	if err := table.Flush(); err != nil {
		return err
	}
	for _, p := range c.Problems {
		fmt.Fprintf(&b, "problem: %s\n", p)
	}
	for _, warning := range c.Warnings {
		fmt.Fprintf(&b, "warning: %s\n", warning)
	}
	if c.OK {
		fmt.Fprintln(&b, "The configuration is good.")
	} else {
		fmt.Fprintf(&b, "The configuration is refused: %d to mend.\n", len(c.Problems))
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func valueText(value any) string {
	switch v := value.(type) {
	case []string:
		return valueText(strings.Join(v, ","))
	case string:
		if v == "" {
			return "-"
		}
		return v
	}
	return fmt.Sprint(value)
}
