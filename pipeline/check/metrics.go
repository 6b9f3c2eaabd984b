package check

import (
	"fmt"
	"unicode"
	"unicode/utf8"

	"github.com/crossfade-io/crossfade/pipeline"
	"github.com/crossfade-io/crossfade/pipeline/canonical"
)

const (
	maxMetrics   = 50
	maxMetricKey = 128 // characters
)

// metrics: an object of at most 50 keys of at most 128 characters without control
// characters, and values that jsonb can hold. Duplicates of a key count once.
func metrics(in Input) (pipeline.Reason, string) {
	v := in.Fields.Metrics
	if v.IsNull() {
		return pipeline.Accepted, ""
	}
	if v.Kind() != canonical.KindObject {
		return pipeline.MetricsInvalid, "metrics is not an object"
	}
	keys := 0
	reason, detail := pipeline.Accepted, ""
	for key := range v.Members() {
		keys++
		if reason == pipeline.Accepted {
			reason, detail = metricKey(key)
		}
	}
	if keys > maxMetrics {
		return pipeline.TooManyMetrics, fmt.Sprintf("%d metrics, the limit is %d", keys, maxMetrics)
	}
	if reason != pipeline.Accepted {
		return reason, detail
	}
	if _, ok := in.Metrics(); !ok {
		return pipeline.MetricValueInvalid, "a value holds U+0000, a lone surrogate or a number that no double can hold"
	}
	return pipeline.Accepted, ""
}

func metricKey(key string) (pipeline.Reason, string) {
	if len(key) > maxMetricKey {
		if n := utf8.RuneCountInString(key); n > maxMetricKey {
			return pipeline.MetricKeyTooLong, fmt.Sprintf("a metric's key has %d characters, the limit is %d", n, maxMetricKey)
		}
	}
	for _, r := range key {
		if unicode.IsControl(r) || r == utf8.RuneError {
			return pipeline.MetricKeyInvalid, "a metric's key holds a control character or is no Unicode text"
		}
	}
	return pipeline.Accepted, ""
}
