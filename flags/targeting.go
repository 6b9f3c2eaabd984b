package flags

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/diegoholiveira/jsonlogic/v3"
	"golang.org/x/mod/semver"
)

// targetingOperators are what a rule may consist of: JsonLogic's own and flagd's.
// Others are refused when the file is read, and not only when they are reached.
var targetingOperators = map[string]bool{}

// registerOperators adds flagd's operators to jsonlogic, whose table is the
// process's (github.com/open-feature/flagd, core/pkg/evaluator).
var registerOperators = sync.OnceFunc(func() {
	jsonlogic.AddOperator("fractional", fractional)
	jsonlogic.AddOperator("sem_ver", semVer)
	jsonlogic.AddOperator("starts_with", affix("starts_with", strings.HasPrefix))
	jsonlogic.AddOperator("ends_with", affix("ends_with", strings.HasSuffix))
	for op := range strings.FieldsSeq(`and or filter map reduce all none some in missing missing_some var cat substr
		merge if ?: max min + - * / % ! !! === !== == != < <= > >= fractional sem_ver starts_with ends_with`) {
		targetingOperators[op] = true
	}
})

// maxRuleNodes bounds a rule after $ref has been replaced, maxRuleDepth its depth.
const (
	maxRuleNodes = 100_000
	maxRuleDepth = 100
)

// ruleReader takes a targeting rule apart: replaces {"$ref": name} by the
// evaluator of that name, and refuses what is no rule.
type ruleReader struct {
	evaluators map[string]json.RawMessage
	nodes      int
}

// read returns the rule, nil for none.
func (r *ruleReader) read(raw json.RawMessage) (any, error) {
	var rule any
	if err := json.Unmarshal(raw, &rule); err != nil {
		return nil, err
	}
	switch m := rule.(type) {
	case nil:
		return nil, nil
	case map[string]any:
		if len(m) == 0 {
			return nil, nil
		}
	default:
		return nil, errors.New("targeting is no object")
	}
	return r.walk(rule, 0)
}

func (r *ruleReader) walk(node any, depth int) (any, error) {
	if r.nodes++; r.nodes > maxRuleNodes {
		return nil, fmt.Errorf("the rule has more than %d parts", maxRuleNodes)
	}
	if depth > maxRuleDepth {
		return nil, fmt.Errorf("the rule is nested deeper than %d, or a $ref leads back to itself", maxRuleDepth)
	}
	switch n := node.(type) {
	case []any:
		for i := range n {
			var err error
			if n[i], err = r.walk(n[i], depth+1); err != nil {
				return nil, err
			}
		}
	case map[string]any:
		return r.operation(n, depth)
	}
	return node, nil
}

func (r *ruleReader) operation(n map[string]any, depth int) (any, error) {
	if len(n) != 1 {
		return nil, errors.New("an object in a rule must have one member, an operator")
	}
	for op, args := range n {
		if op == "$ref" {
			name, _ := args.(string)
			raw, ok := r.evaluators[name]
			if !ok {
				return nil, fmt.Errorf("$ref to %q, which is not in $evaluators", clip(name, 64))
			}
			var evaluator any
			if err := json.Unmarshal(raw, &evaluator); err != nil {
				return nil, err
			}
			return r.walk(evaluator, depth+1)
		}
		if !targetingOperators[op] {
			return nil, fmt.Errorf("operator %q is not supported", clip(op, 64))
		}
		walked, err := r.walk(args, depth+1)
		if err != nil {
			return nil, err
		}
		n[op] = walked
	}
	return n, nil
}

// applyRule returns the variant that a rule names, and false where the rule
// leaves it to the default variant.
func applyRule(rule any, flag string, evalCtx map[string]any) (variant string, ok bool, err error) {
	defer func() {
		if p := recover(); p != nil { // jsonlogic panics on what it cannot make sense of
			err = fmt.Errorf("the rule cannot be applied: %v", p)
		}
	}()
	data := make(map[string]any, len(evalCtx)+1)
	for k, v := range evalCtx {
		data[k] = v
	}
	data["$flagd"] = map[string]any{"flagKey": flag, "timestamp": float64(time.Now().Unix())}
	result, err := jsonlogic.ApplyInterface(rule, data)
	if err != nil {
		return "", false, fmt.Errorf("the rule cannot be applied: %w", err)
	}
	switch v := result.(type) {
	case nil:
		return "", false, nil
	case string:
		return v, true, nil
	case bool: // flagd's short form: a condition alone names the variant "true" or "false"
		return fmt.Sprint(v), true, nil
	}
	return "", false, fmt.Errorf("the rule gives %T instead of a variant's name", result)
}

// fractional picks one of [variant, weight] pairs by the hash of its first
// argument or, without one, of flag key and targeting key: murmur3, scaled to the
// sum of the weights in integers, as flagd does since open-feature/flagd#1909
// (2026); before, the buckets were others. Where flagd would quietly fall back to
// the default variant because the rule is malformed, there is no answer here.
func fractional(values, data any) any {
	args, ok := values.([]any)
	if !ok || len(args) == 0 {
		panic(errors.New("fractional needs a list of [variant, weight]"))
	}
	var bucketBy string
	switch first := args[0].(type) {
	case string:
		bucketBy, args = first, args[1:]
	default:
		if first == nil { // a property that the context does not have
			args = args[1:]
		}
		context, _ := data.(map[string]any)
		properties, _ := context["$flagd"].(map[string]any)
		tenant, ok := context["targetingKey"].(string)
		if !ok {
			panic(errors.New("fractional has nothing to hash"))
		}
		bucketBy = fmt.Sprint(properties["flagKey"]) + tenant
	}
	variants, ends := distribution(args)
	total := uint64(0)
	if len(ends) > 0 {
		total = ends[len(ends)-1]
	}
	if total == 0 {
		panic(errors.New("the weights of fractional add up to nothing"))
	}
	bucket := uint64(murmur3(bucketBy)) * total >> 32
	i, found := slices.BinarySearch(ends, bucket)
	for ; found && i < len(ends) && ends[i] == bucket; i++ { // the end belongs to the next
	}
	return variants[i]
}

// distribution returns the variants and where the range of each one ends.
func distribution(args []any) (variants []any, ends []uint64) {
	sum := uint64(0)
	for _, arg := range args {
		pair, ok := arg.([]any)
		if !ok || len(pair) < 1 || len(pair) > 2 {
			panic(errors.New("fractional takes pairs of [variant, weight]"))
		}
		weight := 1.0
		if len(pair) == 2 && pair[1] != nil {
			if weight, ok = pair[1].(float64); !ok || weight != math.Trunc(weight) || weight < 0 || weight > math.MaxInt32 {
				panic(errors.New("a weight of fractional is no whole number from 0 to 2147483647"))
			}
		}
		if sum += uint64(weight); sum > math.MaxInt32 {
			panic(errors.New("the weights of fractional add up to more than 2147483647"))
		}
		variants, ends = append(variants, pair[0]), append(ends, sum)
	}
	return variants, ends
}

// affix is starts_with and ends_with. A property that the context does not have
// has no affix; anything else than two strings is a mistake in the rule.
func affix(name string, has func(s, affix string) bool) jsonlogic.OperatorFn {
	return func(values, _ any) any {
		args, ok := values.([]any)
		if !ok || len(args) != 2 {
			panic(fmt.Errorf("%s needs two arguments", name))
		}
		target, ok := args[1].(string)
		if !ok {
			panic(fmt.Errorf("the second argument of %s is no string", name))
		}
		property, ok := args[0].(string)
		return ok && has(property, target)
	}
}

// semVer compares versions. A property that is no version compares false.
func semVer(values, _ any) any {
	args, ok := values.([]any)
	if !ok || len(args) != 3 {
		panic(errors.New("sem_ver needs three arguments: a version, an operator, a version"))
	}
	target, ok := version(args[2])
	if !ok {
		panic(errors.New("the third argument of sem_ver is no version"))
	}
	property, isVersion := version(args[0])
	order := semver.Compare(property, target)
	var holds bool
	switch args[1] {
	case "=":
		holds = order == 0
	case "!=":
		holds = order != 0
	case "<":
		holds = order < 0
	case "<=":
		holds = order <= 0
	case ">":
		holds = order > 0
	case ">=":
		holds = order >= 0
	case "^":
		holds = semver.Major(property) == semver.Major(target)
	case "~":
		holds = semver.MajorMinor(property) == semver.MajorMinor(target)
	default:
		panic(errors.New("the second argument of sem_ver is none of = != < <= > >= ^ ~"))
	}
	return isVersion && holds
}

// version brings a version into the form of golang.org/x/mod/semver.
func version(v any) (string, bool) {
	s, ok := v.(string)
	if !strings.HasPrefix(s, "v") {
		s = "v" + s
	}
	return s, ok && semver.IsValid(s)
}
