package flags

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	of "github.com/open-feature/go-sdk/openfeature"
)

// The keys at which MurmurHash3_x86_32 takes its critical values, from flagd's
// testbed (open-feature/flagd-testbed, "hash edge cases"), and published vectors.
func TestMurmur3(t *testing.T) {
	for s, want := range map[string]uint32{
		"": 0, "test": 0xba6bd213, "Hello, world!": 0xc0363e43,
		"The quick brown fox jumps over the lazy dog": 0x2e4ff723,
		"ejOoVL": 0, "bY9fO-": 1, "SI7p-": 0x7fffffff, "6LvT0": 0x80000000, "ceQdGm": 0xffffffff,
	} {
		if got := murmur3(s); got != want {
			t.Errorf("murmur3(%q) is %#x, want %#x", s, got, want)
		}
	}
}

func resolveRule(t *testing.T, flag, rule string, evalCtx map[string]any) of.StringResolutionDetail {
	t.Helper()
	var variants []string
	for _, v := range strings.Fields("clubs diamonds hearts spades heads tails lower upper mqtt shadow live jetstream true false") {
		variants = append(variants, fmt.Sprintf("%q: %q", v, v))
	}
	all, err := parseDefinitions([]byte(fmt.Sprintf(`{"flags": {%q: {"state": "ENABLED", "variants": {%s}, "defaultVariant": "mqtt", "targeting": %s}},
		"$evaluators": {"ours": {"in": [{"var": "targetingKey"}, ["a", "b"]]}, "loop": {"!": {"$ref": "loop"}},
		"bomb": {"and": [{"$ref": "bomb1"},{"$ref": "bomb1"},{"$ref": "bomb1"},{"$ref": "bomb1"},{"$ref": "bomb1"},{"$ref": "bomb1"},{"$ref": "bomb1"},{"$ref": "bomb1"},{"$ref": "bomb1"},{"$ref": "bomb1"}]},
		"bomb1": {"and": [{"$ref": "bomb2"},{"$ref": "bomb2"},{"$ref": "bomb2"},{"$ref": "bomb2"},{"$ref": "bomb2"},{"$ref": "bomb2"},{"$ref": "bomb2"},{"$ref": "bomb2"},{"$ref": "bomb2"},{"$ref": "bomb2"}]},
		"bomb2": {"and": [{"$ref": "bomb3"},{"$ref": "bomb3"},{"$ref": "bomb3"},{"$ref": "bomb3"},{"$ref": "bomb3"},{"$ref": "bomb3"},{"$ref": "bomb3"},{"$ref": "bomb3"},{"$ref": "bomb3"},{"$ref": "bomb3"}]},
		"bomb3": {"and": [{"$ref": "bomb4"},{"$ref": "bomb4"},{"$ref": "bomb4"},{"$ref": "bomb4"},{"$ref": "bomb4"},{"$ref": "bomb4"},{"$ref": "bomb4"},{"$ref": "bomb4"},{"$ref": "bomb4"},{"$ref": "bomb4"}]},
		"bomb4": {"and": [1,2,3,4,5,6,7,8,9,10]}}}`, flag, strings.Join(variants, ", "), rule)))
	if err != nil {
		t.Fatal(err)
	}
	return all.resolve(flag, evalCtx)
}

// TestFractionalIsFlagds: the examples of flagd's own testbed (fractional-v2), which
// every flagd provider must pass.
func TestFractionalIsFlagds(t *testing.T) {
	const suits = `{"fractional": [{"cat": [{"var": "$flagd.flagKey"}, {"var": "user.name"}]}, ["clubs", 25], ["diamonds", 25], ["hearts", 25], ["spades", 25]]}`
	for name, want := range map[string]string{"jack": "hearts", "queen": "spades", "ten": "clubs", "nine": "diamonds", "3": "clubs"} {
		got := resolveRule(t, "fractional-flag", suits, map[string]any{"user": map[string]any{"name": name}})
		if got.Value != want || got.Reason != of.TargetingMatchReason {
			t.Errorf("%s: %+v, want %s", name, got, want)
		}
	}
	const shared = `{"fractional": [{"cat": ["shared-seed", {"var": "user.name"}]}, ["clubs", 25], ["diamonds", 25], ["hearts", 25], ["spades", 25]]}`
	for name, want := range map[string]string{"seven": "hearts", "eight": "diamonds", "nine": "clubs", "two": "spades"} {
		if got := resolveRule(t, "fractional-flag-A-shared-seed", shared, map[string]any{"user": map[string]any{"name": name}}); got.Value != want {
			t.Errorf("shared seed, %s: %+v, want %s", name, got, want)
		}
	}
	for tenant, want := range map[string]string{"jon@company.com": "heads", "jane@company.com": "tails"} {
		for _, rule := range []string{`{"fractional": [["heads"], ["tails", 1]]}`, `{"fractional": [{"var": "absent"}, ["heads"], ["tails"]]}`} {
			if got := resolveRule(t, "fractional-flag-shorthand", rule, map[string]any{"targetingKey": tenant}); got.Value != want {
				t.Errorf("%s: %+v, want %s", tenant, got, want)
			}
		}
	}
	for key, want := range map[string]string{"ejOoVL": "lower", "bY9fO-": "lower", "SI7p-": "lower", "6LvT0": "upper", "ceQdGm": "upper"} {
		got := resolveRule(t, "edge", `{"fractional": [{"var": "targetingKey"}, ["lower", 50], ["upper", 50]]}`, map[string]any{"targetingKey": key})
		if got.Value != want {
			t.Errorf("%s: %+v, want %s", key, got, want)
		}
	}
}

func TestTargeting(t *testing.T) {
	for rule, want := range map[string]string{
		`null`: "mqtt STATIC", `{}`: "mqtt STATIC",
		`{"if": [{"in": [{"var": "targetingKey"}, ["a", "b"]]}, "live"]}`:                                  "live TARGETING_MATCH",
		`{"if": [{"in": [{"var": "targetingKey"}, ["c"]]}, "live", null]}`:                                 "mqtt DEFAULT",
		`{"if": [{"$ref": "ours"}, "live", "shadow"]}`:                                                     "live TARGETING_MATCH",
		`{"if": [{"starts_with": [{"var": "targetingKey"}, "a"]}, "live", "shadow"]}`:                      "live TARGETING_MATCH",
		`{"if": [{"ends_with": [{"var": "targetingKey"}, "x"]}, "live", "shadow"]}`:                        "shadow TARGETING_MATCH",
		`{"if": [{"ends_with": [{"var": "absent"}, ""]}, "live", "shadow"]}`:                               "shadow TARGETING_MATCH",
		`{"if": [{"sem_ver": [{"var": "version"}, "^", "2.0.0"]}, "live", "shadow"]}`:                      "live TARGETING_MATCH",
		`{"if": [{"sem_ver": [{"var": "version"}, "~", "2.0.0"]}, "live", "shadow"]}`:                      "shadow TARGETING_MATCH",
		`{"if": [{"sem_ver": [{"var": "version"}, ">=", "v2.1.3"]}, "live", "shadow"]}`:                    "live TARGETING_MATCH",
		`{"if": [{"sem_ver": [{"var": "absent"}, "!=", "1.0.0"]}, "live", "shadow"]}`:                      "shadow TARGETING_MATCH",
		`{"starts_with": [{"var": "targetingKey"}, "a"]}`:                                                  "true TARGETING_MATCH",
		`{"fractional": [["live", 1], ["shadow", 0]]}`:                                                     "live TARGETING_MATCH",
		`{"fractional": [["live", 0], [null, 1]]}`:                                                         "mqtt DEFAULT",
		`{"if": [{">": [{"var": "$flagd.timestamp"}, 1700000000]}, "live", "shadow"]}`:                     "live TARGETING_MATCH",
		`{"if": [{"==": [{"var": "$flagd.flagKey"}, "f"]}, {"fractional": [["jetstream", 1]]}, "shadow"]}`: "jetstream TARGETING_MATCH",
	} {
		got := resolveRule(t, "f", rule, map[string]any{"targetingKey": "a", "version": "2.1.3"})
		if fmt.Sprint(got.Value, " ", got.Reason) != want {
			t.Errorf("%s: %+v, want %s", rule, got, want)
		}
	}
}

// TestOddRulesAreNoAnswer: where flagd falls back to the default variant, tenants
// would move for a slip of the pen (P5).
func TestOddRulesAreNoAnswer(t *testing.T) {
	for rule, want := range map[string]string{
		`{"fractional": [["live", 12.5], ["shadow", 87.5]]}`:              "whole number",
		`{"fractional": [["live", -1], ["shadow", 2]]}`:                   "whole number",
		`{"fractional": [["live", "1"], ["shadow", 2]]}`:                  "whole number",
		`{"fractional": [["live", 2147483647], ["shadow", 1]]}`:           "add up to more",
		`{"fractional": [["live", 0], ["shadow", 0]]}`:                    "add up to nothing",
		`{"fractional": "live"}`:                                          "list",
		`{"fractional": ["live", "shadow"]}`:                              "pairs",
		`{"fractional": []}`:                                              "list",
		`{"fractional": [["warp", 1]]}`:                                   `variant "warp", which it has not`,
		`{"fractionalEvaluation": [["live", 1]]}`:                         "not supported",
		`{"rollout": [1, 2, "live"]}`:                                     "not supported",
		`{"if": [false, {"nonsense": 1}, "live"]}`:                        "not supported",
		`{"if": [true, "live"], "or": []}`:                                "one member",
		`"live"`:                                                          "no object",
		`[1]`:                                                             "no object",
		`{"if": [{"$ref": "nobody"}, "live"]}`:                            "not in $evaluators",
		`{"if": [{"$ref": "loop"}, "live"]}`:                              "leads back to itself",
		`{"if": [{"$ref": "bomb"}, "live"]}`:                              "parts",
		`{"+": [1, 2]}`:                                                   "instead of a variant's name",
		`{"merge": [["live"]]}`:                                           "instead of a variant's name",
		`{"<": 1}`:                                                        "cannot be applied",
		`{"sem_ver": ["1.0.0", "=", "one"]}`:                              "no version",
		`{"sem_ver": ["1.0.0", "is", "1.0.0"]}`:                           "none of",
		`{"starts_with": ["a"]}`:                                          "two arguments",
		`{"ends_with": ["a", 1]}`:                                         "no string",
		strings.Repeat(`{"!": `, 200) + "true" + strings.Repeat("}", 200): "nested deeper",
		`{"cat": ["wa", "rp"]}`:                                           `variant "warp"`,
	} {
		got := resolveRule(t, "f", rule, map[string]any{"targetingKey": "a"})
		if got.Error() == nil || got.Value != "" || !strings.Contains(got.Error().Error(), want) {
			t.Errorf("%.80s: %+v, want an error with %q", rule, got, want)
		}
	}
}

// FuzzDefinitions: whatever is in the file, there is an answer or an error.
func FuzzDefinitions(f *testing.F) {
	f.Add([]byte(`{"flags": {"ingest-source": {"state": "ENABLED", "variants": {"live": "live"}, "defaultVariant": "live", "targeting": {"fractional": [["live", 1]]}}}}`))
	f.Add([]byte(`{"flags": {"ingest-source": {"variants": {"a": 1}, "targeting": {"if": [{"$ref": "x"}, "a"]}}}, "$evaluators": {"x": {"var": ["a", 1]}}}`))
	f.Add([]byte(`{"flags": {"ingest-source": {"variants": {}, "targeting": {"reduce": [[1], {"var": 0}, null]}}}}`))
	f.Fuzz(func(t *testing.T, content []byte) {
		all, err := parseDefinitions(content)
		if err != nil {
			return
		}
		got := all.resolve(FlagKey, map[string]any{"targetingKey": "a"})
		if got.Error() != nil && got.Value != "" {
			t.Errorf("an error with value %q", got.Value)
		}
		if got.Error() == nil {
			if _, err := json.Marshal(got.Value); err != nil || got.Reason == "" {
				t.Errorf("%+v, %v", got, err)
			}
		}
	})
}
