package config

import (
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/alecthomas/kong"
	"gopkg.in/yaml.v3"
)

// maxFileBytes bounds a configuration file: far more than any real one.
const maxFileBytes = 1 << 20

// LoadedFile is a configuration file that was read and found to hold known keys
// with values of the right kind. It is the kong.Resolver for those values.
type LoadedFile struct {
	path   string
	values map[string]fileValue // by YAML key
}

type fileValue struct {
	value any // string, or []any of strings for a list
	line  int
}

// LoadFile reads a YAML file. A file that can be read but holds unknown keys or
// wrong values is refused with an [*Error] that lists all of them, by file, line
// and key; values are never repeated, they may be secrets.
func LoadFile(path string) (*LoadedFile, error) {
	content, err := readBounded(kong.ExpandPath(path))
	if err != nil {
		return nil, &Error{Problems: []Problem{{Setting: names("config"),
			Wrong: "cannot be read: " + err.Error(), Remedy: "name a readable YAML file of at most 1 MiB, or leave it out"}}}
	}
	r := &fileReader{path: path, values: map[string]fileValue{}}
	r.document(content)
	if len(r.found.list) > 0 {
		return nil, r.found.err()
	}
	return &LoadedFile{path: path, values: r.values}, nil
}

func readBounded(path string) ([]byte, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	content, err := io.ReadAll(io.LimitReader(file, maxFileBytes+1))
	if err != nil {
		return nil, err
	}
	if len(content) > maxFileBytes {
		return nil, fmt.Errorf("%s is larger than 1 MiB", path)
	}
	return content, nil
}

// Validate has nothing to do: LoadFile has held the file against every setting,
// not only against those of the command that is running.
func (f *LoadedFile) Validate(*kong.Application) error { return nil }

// Resolve answers kong's question for the value of a flag. It stays silent where
// the environment has one: kong asks resolvers after the environment, and takes
// what they say over it.
func (f *LoadedFile) Resolve(_ *kong.Context, _ *kong.Path, flag *kong.Flag) (any, error) {
	if envOf(flag.Envs) != "" {
		return nil, nil
	}
	key := keyOf(flag.Name)
	if _, known := model().byFlag[flag.Name]; !known {
		return nil, nil
	}
	if v, ok := f.values[key]; ok {
		return v.value, nil
	}
	return nil, nil
}

// envOf returns the first of the variables that is set, be it to nothing.
func envOf(names []string) string {
	for _, name := range names {
		if _, ok := os.LookupEnv(name); ok {
			return name
		}
	}
	return ""
}

// fileReader walks one YAML document and collects values and problems.
type fileReader struct {
	path   string
	values map[string]fileValue
	found  problems
}

func (r *fileReader) wrong(line int, key, wrong, remedy string) {
	r.found.list = append(r.found.list, Problem{
		Where: r.path + ":" + strconv.Itoa(line), Setting: key, Wrong: wrong, Remedy: remedy})
}

var yamlLine = regexp.MustCompile(`line (\d+)`)

func (r *fileReader) document(content []byte) {
	decoder := yaml.NewDecoder(strings.NewReader(string(content)))
	var root yaml.Node
	err := decoder.Decode(&root)
	if errors.Is(err, io.EOF) {
		return // empty, or only comments
	}
	if err != nil {
		// The library's own text may repeat a value ("unknown anchor 'x'" for a
		// password that begins with *), so only its line number is passed on.
		line := 1
		if m := yamlLine.FindStringSubmatch(err.Error()); m != nil {
			line, _ = strconv.Atoi(m[1])
		}
		r.wrong(line, "file", "is not valid YAML near this line",
			"check the indentation, and put values that hold any of : # * & ! % @ or quotes in single quotes")
		return
	}
	if err := decoder.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		r.wrong(1, "file", "holds more than one YAML document", "keep one, without a --- between parts")
	}
	r.section("", &root)
}

// section reads a mapping. Its depth is bounded by the known sections: anything
// else below is refused before it is entered.
func (r *fileReader) section(prefix string, node *yaml.Node) {
	for node.Kind == yaml.DocumentNode || node.Kind == yaml.AliasNode {
		if node.Kind == yaml.AliasNode {
			node = node.Alias
		} else {
			node = node.Content[0]
		}
	}
	name := strings.TrimSuffix(prefix, ".")
	if name == "" {
		name = "file"
	}
	if node.Kind == yaml.ScalarNode && node.Tag == "!!null" {
		return // a section whose lines are all commented out
	}
	if node.Kind != yaml.MappingNode {
		r.wrong(node.Line, name, "must be a mapping", "write its settings below it, indented, as key: value")
		return
	}
	seen := map[string]bool{}
	for i := 0; i+1 < len(node.Content); i += 2 {
		key, value := node.Content[i], node.Content[i+1]
		full := prefix + key.Value
		if seen[full] {
			r.wrong(key.Line, full, "is given twice", "keep one")
			continue
		}
		seen[full] = true
		r.member(full, key.Line, value)
	}
}

func (r *fileReader) member(key string, line int, value *yaml.Node) {
	if setting, ok := model().byKey[key]; ok {
		r.setting(setting, line, value)
		return
	}
	for known := range model().byKey {
		if strings.HasPrefix(known, key+".") {
			r.section(key+".", value)
			return
		}
	}
	shown := key
	if len(shown) > 80 {
		shown = shown[:80] + "…"
	}
	remedy := "see docs/configuration.md for the keys"
	if near := nearest(key, knownKeys()); near != "" {
		remedy = fmt.Sprintf("did you mean %s?", near)
	}
	r.wrong(line, strconv.Quote(shown), "unknown key", remedy)
}

// knownKeys are the keys of settings and of sections.
func knownKeys() []string {
	var keys []string
	for key := range model().byKey {
		keys = append(keys, key)
		for i, c := range key {
			if c == '.' {
				keys = append(keys, key[:i])
			}
		}
	}
	slices.Sort(keys)
	return slices.Compact(keys)
}

func (r *fileReader) setting(s Setting, line int, node *yaml.Node) {
	for node.Kind == yaml.AliasNode {
		node = node.Alias
	}
	if node.Kind == yaml.ScalarNode && node.Tag == "!!null" {
		r.wrong(line, s.Key, "has no value, expected "+string(s.Kind), "give it one or remove the key")
		return
	}
	value, remedy := decodeNode(s, node)
	if remedy != "" {
		r.wrong(line, s.Key, "unusable value, expected "+string(s.Kind), remedy)
		return
	}
	r.values[s.Key] = fileValue{value: value, line: line}
}

var plainNumber = regexp.MustCompile(`^-?(0|[1-9][0-9]*)(\.[0-9]+)?$`)

// decodeNode returns the value for kong, or what to write instead.
func decodeNode(s Setting, node *yaml.Node) (value any, remedy string) {
	if s.Kind == KindList {
		return decodeList(node)
	}
	scalar := node.Kind == yaml.ScalarNode
	switch s.Kind {
	case KindInt:
		if !scalar || node.Tag != "!!int" {
			return nil, "write digits without quotes, such as " + s.Default
		}
		// Octal, hexadecimal and 1_000 mean different things to different readers.
		if n, err := strconv.Atoi(node.Value); err != nil || strconv.Itoa(n) != node.Value {
			return nil, "write it in plain decimal digits, such as " + s.Default
		}
	case KindNumber:
		if !scalar || node.Tag != "!!int" && node.Tag != "!!float" {
			return nil, "write a number without quotes, such as " + s.Default
		}
		if !plainNumber.MatchString(node.Value) {
			return nil, "write it in plain decimal digits, such as " + s.Default
		}
	case KindBool:
		if !scalar || node.Tag != "!!bool" {
			return nil, "write true or false, without quotes"
		}
	case KindDuration:
		if !scalar {
			return nil, "write a number and a unit, such as " + s.Default
		}
		if _, err := time.ParseDuration(node.Value); err != nil {
			return nil, "write a number and a unit (ms, s, m, h), such as " + s.Default
		}
	default:
		if !scalar || node.Tag != "!!str" {
			return nil, "put the value in quotes"
		}
		if s.Enum != "" && !slices.Contains(strings.Split(s.Enum, ","), node.Value) {
			return nil, "write one of " + strings.ReplaceAll(s.Enum, ",", ", ")
		}
	}
	return node.Value, ""
}

func decodeList(node *yaml.Node) (value any, remedy string) {
	const how = "write a list: one line for each, as - 'text'"
	if node.Kind != yaml.SequenceNode {
		return nil, how
	}
	texts := make([]any, 0, len(node.Content))
	for _, item := range node.Content {
		if item.Kind != yaml.ScalarNode || item.Tag != "!!str" {
			return nil, how
		}
		texts = append(texts, item.Value)
	}
	return texts, ""
}
