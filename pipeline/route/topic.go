package route

import (
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/crossfade-io/crossfade/pipeline"
)

// checkTopicFilter says what is wrong with an MQTT topic filter (MQTT 5, sections
// 4.7.1 and 4.7.3).
func checkTopicFilter(filter string) error {
	switch {
	case filter == "":
		return errors.New("it is empty; # takes every topic")
	case len(filter) > pipeline.MaxTopic:
		return fmt.Errorf("it has %d bytes, %d are the most", len(filter), pipeline.MaxTopic)
	case !utf8.ValidString(filter) || strings.IndexByte(filter, 0) >= 0:
		return errors.New("it holds bytes that no topic can hold")
	}
	rest, more := filter, true
	for more {
		var level string
		level, rest, more = strings.Cut(rest, "/")
		switch {
		case level == "#" && more:
			return errors.New("# must be the last level")
		case len(level) > 1 && strings.ContainsAny(level, "+#"):
			return errors.New("+ and # must stand alone between slashes")
		}
	}
	return nil
}

// matchTopic reports whether a valid filter takes a topic.
func matchTopic(filter, topic string) bool {
	if strings.HasPrefix(topic, "$") && (filter[0] == '+' || filter[0] == '#') {
		return false // section 4.7.2
	}
	return matchLevels(filter, topic)
}

// matchLevels is matchTopic from any level on.
func matchLevels(filter, topic string) bool {
	for {
		want, restWant, moreWant := strings.Cut(filter, "/")
		if want == "#" {
			return true
		}
		have, restHave, moreHave := strings.Cut(topic, "/")
		if want != "+" && want != have {
			return false
		}
		if !moreHave {
			return !moreWant || restWant == "#" // which takes the parent as well
		}
		if !moreWant {
			return false
		}
		filter, topic = restWant, restHave
	}
}
