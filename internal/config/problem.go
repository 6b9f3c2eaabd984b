package config

import (
	"fmt"
	"strings"
)

// Problem is one thing that is wrong, with what to do about it. It never holds
// the value of a secret.
type Problem struct {
	// Where names the place in the file, as path:line; empty where the setting
	// as such is wrong, wherever it was given.
	Where string `json:"where,omitempty"`
	// Setting names the setting: all its names, or the key as the file has it.
	Setting string `json:"setting"`
	Wrong   string `json:"wrong"`
	Remedy  string `json:"remedy"`
}

// String is one line: setting, what is wrong, remedy.
func (p Problem) String() string {
	line := p.Setting + ": " + p.Wrong + "; " + p.Remedy
	if p.Where != "" {
		line = p.Where + ": " + line
	}
	return line
}

// Error is everything that is wrong with a configuration.
type Error struct{ Problems []Problem }

// Error lists the problems, one a line.
func (e *Error) Error() string {
	lines := make([]string, 0, len(e.Problems)+1)
	lines = append(lines, fmt.Sprintf("configuration refused (%d to mend):", len(e.Problems)))
	for _, p := range e.Problems {
		lines = append(lines, "  "+p.String())
	}
	return strings.Join(lines, "\n")
}

// ExitCode is 2.
func (e *Error) ExitCode() int { return ExitCode }

// problems collects what Validate finds.
type problems struct{ list []Problem }

// add notes a problem with the setting of that flag.
func (p *problems) add(flag, wrong, remedy string) {
	p.list = append(p.list, Problem{Setting: names(flag), Wrong: wrong, Remedy: remedy})
}

func (p *problems) err() error {
	if len(p.list) == 0 {
		return nil
	}
	return &Error{Problems: p.list}
}

// names returns a setting's names for a message: flag, environment, YAML key.
func names(flag string) string {
	s, ok := model().byFlag[flag]
	if !ok {
		return "--" + flag
	}
	parts := []string{"--" + flag, s.Env[0]}
	if s.Key != "" {
		parts = append(parts, s.Key)
	}
	return strings.Join(parts, ", ")
}
