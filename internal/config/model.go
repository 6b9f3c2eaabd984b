package config

import (
	"reflect"
	"strings"
	"sync"
	"time"

	"github.com/alecthomas/kong"
)

// Kind is the form of a setting's value.
type Kind string

// The kinds. They are also the words that errors use.
const (
	KindText     Kind = "text"
	KindInt      Kind = "whole number"
	KindNumber   Kind = "number"
	KindBool     Kind = "true or false"
	KindDuration Kind = "duration"
	KindList     Kind = "list of texts"
)

// Setting describes one setting under all its names.
type Setting struct {
	Group   string   // heading in help and documentation
	Flag    string   // without the dashes: mqtt-url
	Env     []string // first one wins; the first is the one to recommend
	Key     string   // path in the YAML file: mqtt.url; empty for --config
	Kind    Kind
	Default string // as it would be typed; empty for none
	Enum    string // allowed words, separated by commas; empty for any
	Range   string // lowest..highest, both included; empty for any
	Help    string
	Secret  bool   // never shown
	NoFlag  string // how to switch off a flag that can be negated: no-mqtt
}

// sections are the top-level keys of the file. A flag's first word is its
// section, so the three names of a setting can be told from one another.
var sections = []string{"log", "database", "mqtt", "nats", "mirror", "downlink", "pipeline", "bridge", "stages", "flags", "http", "api"}

// keyOf returns the YAML key of a flag: the section, "tls" as a section within
// one, and the rest in snake case. A flag that is just a section's name switches
// that section on: its key is "enabled". --config has none.
func keyOf(flag string) string {
	section, rest, found := strings.Cut(flag, "-")
	for _, s := range sections {
		if s != section {
			continue
		}
		if !found {
			return section + ".enabled"
		}
		if within, ok := strings.CutPrefix(rest, "tls-"); ok {
			section, rest = section+".tls", within
		}
		return section + "." + strings.ReplaceAll(rest, "-", "_")
	}
	return ""
}

// Settings are all settings, in the order of the structs. The slice is shared:
// callers must not change it.
func Settings() []Setting { return model().settings }

type knownSettings struct {
	settings []Setting
	byFlag   map[string]Setting
	byKey    map[string]Setting
}

// model describes Run. A failure is a mistake in a struct tag, not in anything a
// user gave, and every test of the package meets it.
var model = sync.OnceValue(func() *knownSettings {
	parser, err := kong.New(&Run{}, append(Options(), kong.NoDefaultHelp())...)
	if err != nil {
		panic("config: struct tags: " + err.Error())
	}
	known := &knownSettings{byFlag: map[string]Setting{}, byKey: map[string]Setting{}}
	for _, flag := range parser.Model.Flags {
		s := settingOf(flag)
		known.settings = append(known.settings, s)
		known.byFlag[s.Flag] = s
		if s.Key != "" {
			known.byKey[s.Key] = s
		}
	}
	return known
})

func settingOf(flag *kong.Flag) Setting {
	s := Setting{
		Flag:    flag.Name,
		Env:     flag.Envs,
		Key:     keyOf(flag.Name),
		Kind:    kindOf(flag.Target.Type()),
		Default: flag.Default,
		Enum:    flag.Enum,
		Range:   flag.Tag.Get("range"),
		Help:    flag.Help,
		Secret:  flag.Target.Type() == reflect.TypeFor[Secret](),
	}
	if flag.Group != nil {
		s.Group = flag.Group.Title
	}
	if flag.Tag.Negatable != "" {
		s.NoFlag = "no-" + flag.Name
	}
	return s
}

func kindOf(t reflect.Type) Kind {
	switch {
	case t == reflect.TypeFor[time.Duration]():
		return KindDuration
	case t.Kind() == reflect.Bool:
		return KindBool
	case t.Kind() == reflect.Int:
		return KindInt
	case t.Kind() == reflect.Float64:
		return KindNumber
	case t.Kind() == reflect.Slice:
		return KindList
	}
	return KindText
}

// nearest returns the candidate that a misspelt name most likely meant, or ""
// where none is close.
func nearest(name string, candidates []string) string {
	best, bestDistance := "", len(name)/3+2
	for _, c := range candidates {
		if d := editDistance(strings.ToLower(name), strings.ToLower(c)); d < bestDistance {
			best, bestDistance = c, d
		}
	}
	return best
}

// editDistance is Levenshtein's, over bytes: settings have ASCII names.
func editDistance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
