package rollout

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"gopkg.in/yaml.v3"
)

// fields are those of a mapping, by name; nil for what has none.
type fields map[string]fields

var planFields = fields{
	"name": nil, "stage": nil, "bake_in": nil, "on_failure": nil, "max_in_transition": nil, "wait_at_most": nil,
	"waves": {"tenants": nil, "percent": nil, "bake": nil},
	"gates": {
		"parity":     {"min_messages": nil, "max_rescued_share": nil, "max_mismatched": nil},
		"lag":        {"max": nil},
		"rescues":    {"max": nil},
		"quarantine": {"max_share": nil, "min_messages": nil},
	},
}

// Parse reads a plan in YAML, at most MaxPlanBytes long. What it leaves out is as in
// DefaultPlan; what it says and a plan does not have is an error that names it.
func Parse(data []byte) (Plan, error) {
	p := DefaultPlan()
	if len(data) > MaxPlanBytes {
		return p, fmt.Errorf("the plan is longer than %d bytes: use percent instead of lists of tenants", MaxPlanBytes)
	}
	decoder := yaml.NewDecoder(bytes.NewReader(data))
	var document yaml.Node
	if err := decoder.Decode(&document); err != nil {
		if errors.Is(err, io.EOF) {
			return p, errors.New("the plan is empty: give at least name and waves")
		}
		return p, fmt.Errorf("the plan is not YAML: %w", err)
	}
	var more yaml.Node
	if err := decoder.Decode(&more); !errors.Is(err, io.EOF) {
		return p, errors.New("the plan has more than one document: remove what follows the line ---")
	}
	if err := check(document.Content[0], "", planFields); err != nil {
		return p, err
	}
	if err := document.Decode(&p); err != nil {
		return p, fmt.Errorf("the plan cannot be read: %w", err)
	}
	p.complete()
	if err := p.Validate(); err != nil {
		return p, err
	}
	return p, nil
}

// check refuses fields that a plan does not have, and what would make the same text
// mean something else than it seems to.
func check(n *yaml.Node, path string, known fields) error {
	at := func(format string, args ...any) error {
		return fmt.Errorf("line %d: "+format, append([]any{n.Line}, args...)...)
	}
	switch {
	case n.Kind == yaml.AliasNode || n.Anchor != "":
		return at("%s: anchors and aliases are not taken: write it out", orPlan(path))
	case n.Tag == "!!null":
		return at("%s is empty: give it a value, or remove the line", orPlan(path))
	case n.Kind == yaml.SequenceNode:
		for i, item := range n.Content {
			if err := check(item, fmt.Sprintf("%s[%d]", path, i+1), known); err != nil {
				return err
			}
		}
	case n.Kind == yaml.MappingNode:
		for i := 0; i+1 < len(n.Content); i += 2 {
			key := n.Content[i]
			inner, ok := known[key.Value]
			name := strings.TrimPrefix(path+"."+key.Value, ".")
			if !ok || key.Kind != yaml.ScalarNode {
				return fmt.Errorf("line %d: unknown field %.80q: use one of %s", key.Line, name, strings.Join(slices.Sorted(maps.Keys(known)), ", "))
			}
			if err := check(n.Content[i+1], name, inner); err != nil {
				return err
			}
		}
	}
	return nil
}

func orPlan(path string) string {
	if path == "" {
		return "the plan"
	}
	return path
}
