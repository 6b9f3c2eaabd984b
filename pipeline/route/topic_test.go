package route

import (
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func TestTopicFilters(t *testing.T) {
	for _, c := range []struct {
		filter, topic string
		want          bool
	}{
		{"#", "tenant/t1/device/d1/telemetry", true},
		{"tenant/t1/device/d1/telemetry", "tenant/t1/device/d1/telemetry", true},
		{"tenant/t1/device/d1/telemetry", "tenant/t1/device/d1/telemetr", false},
		{"tenant/t1/device/d1/telemetry", "tenant/t1/device/d1/telemetry/x", false},
		{"tenant/+/device/+/telemetry", "tenant/t1/device/d1/telemetry", true},
		{"tenant/+/device/+/telemetry", "tenant/t1/device/d1/heartbeat", false},
		{"tenant/+/device/+/+", "tenant/t1/device/d1/a/b", false},
		{"tenant/+/device/+/+", "tenant/t1/device/d1", false},
		{"tenant/t1/#", "tenant/t1/device/d1/telemetry", true},
		{"tenant/t1/#", "tenant/t1", true},
		{"tenant/t1/#", "tenant/t10/device/d1/telemetry", false},
		{"tenant/t1/device/+/#", "tenant/t1/device/d1", true},
		{"tenant/t1/device/+/#", "tenant/t1/device", false},
		{"+", "a", true},
		{"+", "", true},
		{"+", "a/b", false},
		{"+/+", "a/", true},
		{"+/+", "/", true},
		{"/+", "/a", true},
		{"+", "/a", false},
		{"a/+", "a", false},
		{"a/", "a", false},
		{"a", "a/", false},
		{"a/+/#", "a/b", true},
		{"a//b", "a//b", true},
		{"a/+/b", "a//b", true},
		{"$share/x", "$share/x", true},
		{"$x/#", "$x/a", true},
		{"#", "$x/a", false},
		{"+/a", "$x/a", false},
		{"a/+", "a/$x", true},
		{"tenant/t 1/ä", "tenant/t 1/ä", true},
		{"1/2/3/4/5/6/7/8/#", "1/2/3/4/5/6/7/8", true},
		{"1/2/3/4/5/6/7/8/#", "1/2/3/4/5/6/7", false},
		{"1/2/3/4/5/6/7/8/+/#", "1/2/3/4/5/6/7/8", false},
		{"1/2/3/4/5/6/7/8/+/#", "1/2/3/4/5/6/7/8//10", true},
		{"1/2/3/4/5/6/7/8", "1/2/3/4/5/6/7/8/", false},
	} {
		if err := checkTopicFilter(c.filter); err != nil {
			t.Errorf("%q is refused: %v", c.filter, err)
		}
		if got := matchTopic(c.filter, c.topic); got != c.want {
			t.Errorf("filter %q takes topic %q: %v, want %v", c.filter, c.topic, got, c.want)
		}
		if got := sortedIn(c.filter, c.topic); got > 1 || (got == 1) != c.want {
			t.Errorf("filter %q, sorted in, takes topic %q %d times, want %v", c.filter, c.topic, got, c.want)
		}
	}
}

// sortedIn is how often a tree of this filter takes a topic.
func sortedIn(filter, topic string) int {
	var tree level
	tree.add(filter, 7)
	return len(tree.root(nil, topic))
}

func TestBadTopicFilters(t *testing.T) {
	for _, filter := range []string{"", "a/#/b", "#/a", "a#", "a/b#", "a/#b", "+a", "a/b+/c", "a/++", "##", "a\x00", "a\xff", strings.Repeat("a", 65_536)} {
		if err := checkTopicFilter(filter); err == nil {
			t.Errorf("%q is accepted", abridged(filter))
		}
	}
}

// takes is MQTT 5, sections 4.7.1 and 4.7.2, as they are written.
func takes(filter, topic []string) bool {
	if strings.HasPrefix(topic[0], "$") && (filter[0] == "+" || filter[0] == "#") {
		return false
	}
	return takesLevels(filter, topic)
}

func takesLevels(filter, topic []string) bool {
	switch {
	case len(filter) > 0 && filter[0] == "#":
		return true
	case len(filter) == 0 || len(topic) == 0:
		return len(filter) == len(topic) || len(topic) == 0 && len(filter) == 1 && filter[0] == "#"
	case filter[0] != "+" && filter[0] != topic[0]:
		return false
	}
	return takesLevels(filter[1:], topic[1:])
}

func TestTopicFiltersAgreeWithTheStandard(t *testing.T) {
	name := rapid.SampledFrom([]string{"", "a", "b", "aa", "$x"})
	rapid.Check(t, func(t *rapid.T) {
		topic := rapid.SliceOfN(name, 1, maxLevels+3).Draw(t, "topic")
		filter := rapid.SliceOfN(rapid.OneOf(name, rapid.Just("+"), rapid.SampledFrom(topic)), 1, maxLevels+3).Draw(t, "filter")
		if rapid.Bool().Draw(t, "ends with #") {
			filter = append(filter, "#")
		}
		f := strings.Join(filter, "/")
		if f == "" {
			return
		}
		if err := checkTopicFilter(f); err != nil {
			t.Fatalf("%q: %v", f, err)
		}
		if got, want := matchTopic(f, strings.Join(topic, "/")), takes(filter, topic); got != want {
			t.Fatalf("filter %q takes %q: %v, want %v", f, strings.Join(topic, "/"), got, want)
		}
		if got, want := sortedIn(f, strings.Join(topic, "/")), takes(filter, topic); got > 1 || (got == 1) != want {
			t.Fatalf("filter %q, sorted in, takes %q %d times, want %v", f, strings.Join(topic, "/"), got, want)
		}
	})
}
