package route

import (
	"slices"
	"strings"
	"testing"
)

// FuzzMatchTopic: filters match what the standard says (MQTT 5, section 4.7), level by level.
func FuzzMatchTopic(f *testing.F) {
	for _, s := range [][2]string{{"tenant/+/device/+/#", "tenant/t1/device/d1/telemetry"}, {"#", ""}, {"a/#", "a"}, {"a/+", "a/"}, {"+", ""}, {"/", "/"}, {"+/+", "/"}, {"a//#", "a/"}, {"+a", "a"}, {"a/#/b", "a"}, {"\xff", "\xff"}} {
		f.Add(s[0], s[1])
	}
	f.Fuzz(func(t *testing.T, filter, topic string) {
		levels := strings.Split(filter, "/")
		legal := filter != "" && !slices.ContainsFunc(levels, func(l string) bool { return len(l) > 1 && strings.ContainsAny(l, "+#") }) && !slices.Contains(levels[:len(levels)-1], "#")
		if err := checkTopicFilter(filter); err == nil && !legal {
			t.Fatalf("%q is taken for a filter", filter)
		} else if err != nil {
			return
		}
		if got, want := matchTopic(filter, topic), byTheBook(levels, strings.Split(topic, "/")); got != want {
			t.Fatalf("%q takes %q: %t, want %t", filter, topic, got, want)
		}
	})
}

func byTheBook(filter, topic []string) bool {
	if filter[0] == "#" {
		return true
	}
	if len(topic) == 0 || filter[0] != "+" && filter[0] != topic[0] {
		return false
	}
	filter, topic = filter[1:], topic[1:]
	if len(filter) == 0 || len(topic) == 0 {
		return len(topic) == 0 && (len(filter) == 0 || filter[0] == "#")
	}
	return byTheBook(filter, topic)
}
