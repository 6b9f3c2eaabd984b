package flags

import (
	"encoding/json"
	"errors"
	"fmt"

	of "github.com/open-feature/go-sdk/openfeature"
)

// definitions are the flags of a file in flagd's format (flagd.dev/schema/v0/flags.json).
// They never change once they are read.
type definitions map[string]*definition

// definition is one flag. fault is what is wrong with it: one bad flag does not
// take the others with it.
type definition struct {
	fault          error
	disabled       bool
	defaultVariant string // empty for none
	variants       map[string]json.RawMessage
	rule           any // nil for none
}

// parseDefinitions reads a file's content. An error means that it is no such file.
func parseDefinitions(content []byte) (definitions, error) {
	registerOperators()
	top, ok := object(content)
	if !ok {
		return nil, errors.New("is not (or not yet completely) a JSON object")
	}
	flags, ok := object(top["flags"])
	if !ok {
		return nil, errors.New(`has no member "flags" that is an object`)
	}
	var evaluators map[string]json.RawMessage
	if raw, has := top["$evaluators"]; has {
		if evaluators, ok = object(raw); !ok {
			return nil, errors.New(`has a member "$evaluators" that is no object`)
		}
	}
	all := make(definitions, len(flags))
	for key, raw := range flags {
		d := &definition{}
		d.fault = d.read(raw, evaluators)
		all[key] = d
	}
	return all, nil
}

func (d *definition) read(raw json.RawMessage, evaluators map[string]json.RawMessage) error {
	members, ok := object(raw)
	if !ok {
		return errors.New("it is no object")
	}
	switch state, ok := text(members, "state"); {
	case !ok || state != "ENABLED" && state != "DISABLED" && state != "":
		return errors.New("state is neither ENABLED nor DISABLED")
	default:
		d.disabled = state == "DISABLED"
	}
	if d.variants, ok = object(members["variants"]); !ok {
		return errors.New("variants is no object")
	}
	if d.defaultVariant, ok = text(members, "defaultVariant"); !ok {
		return errors.New("defaultVariant is no string")
	}
	if _, ok := d.variants[d.defaultVariant]; d.defaultVariant != "" && !ok {
		return fmt.Errorf("defaultVariant %q is not among the variants", clip(d.defaultVariant, 64))
	}
	if rule, has := members["targeting"]; has {
		reader := ruleReader{evaluators: evaluators}
		var err error
		if d.rule, err = reader.read(rule); err != nil {
			return fmt.Errorf("targeting: %w", err)
		}
	}
	return nil
}

// resolve evaluates a flag.
func (all definitions) resolve(flag string, evalCtx map[string]any) of.StringResolutionDetail {
	d := all[flag]
	switch {
	case d == nil:
		return refused(of.NewFlagNotFoundResolutionError(fmt.Sprintf("flag %q is not in the file", clip(flag, 64))))
	case d.fault != nil:
		return refused(of.NewParseErrorResolutionError(fmt.Sprintf("flag %q: %s", clip(flag, 64), d.fault)))
	case d.disabled:
		return refused(of.NewFlagNotFoundResolutionError(fmt.Sprintf("flag %q is disabled", clip(flag, 64))))
	}
	variant, reason := d.defaultVariant, of.StaticReason
	if d.rule != nil {
		named, ok, err := applyRule(d.rule, flag, evalCtx)
		switch {
		case err != nil:
			return refused(of.NewParseErrorResolutionError(fmt.Sprintf("flag %q: %s", clip(flag, 64), err)))
		case ok:
			variant, reason = named, of.TargetingMatchReason
		default:
			reason = of.DefaultReason
		}
	}
	if variant == "" && reason != of.TargetingMatchReason {
		return refused(of.NewFlagNotFoundResolutionError(fmt.Sprintf("flag %q has no default variant, and its rule does not name one for this tenant", clip(flag, 64))))
	}
	raw, ok := d.variants[variant]
	if !ok {
		return refused(of.NewParseErrorResolutionError(fmt.Sprintf("the rule of flag %q names variant %q, which it has not", clip(flag, 64), clip(variant, 64))))
	}
	var value *string
	if json.Unmarshal(raw, &value) != nil || value == nil {
		return refused(of.NewTypeMismatchResolutionError(fmt.Sprintf("variant %q of flag %q is no string", clip(variant, 64), clip(flag, 64))))
	}
	return of.StringResolutionDetail{Value: *value,
		ProviderResolutionDetail: of.ProviderResolutionDetail{Reason: reason, Variant: variant}}
}
