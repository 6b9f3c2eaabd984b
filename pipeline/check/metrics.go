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
// characters, and values that jsonb can hold, in this order whatever the order of
// the keys. Duplicates of a key count once.
func metrics(in Input) (pipeline.Reason, string) {
	v := in.Fields.Metrics
	if v.IsNull() {
		return pipeline.Accepted, ""
	}
	if v.Kind() != canonical.KindObject {
		return pipeline.MetricsInvalid, "metrics is not an object"
	}
	if !easyKeys(v) {
		if reason, detail := metricKeys(v); reason != pipeline.Accepted {
			return reason, detail
		}
	}
	if _, ok := in.Metrics(); !ok {
		return pipeline.MetricValueInvalid, "a value holds U+0000, a lone surrogate or a number that no double can hold"
	}
	return pipeline.Accepted, ""
}

// easyKeys reports whether metricKeys has nothing to object to, as far as that can
// be told without sorting the keys: few of them, short ones, in printable ASCII.
func easyKeys(v canonical.Value) bool {
	easy := v.Len() <= maxMetrics
	v.Each(func(key string, _ canonical.Value) {
		easy = easy && len(key) <= maxMetricKey
		for i := 0; i < len(key) && easy; i++ {
			easy = key[i] >= ' ' && key[i] <= '~'
		}
	})
	return easy
}

func metricKeys(v canonical.Value) (pipeline.Reason, string) {
	keys := 0
	reason, detail := pipeline.Accepted, ""
	for key := range v.Members() {
		keys++
		if reason == pipeline.MetricKeyTooLong {
			continue
		}
		if r, d := metricKey(key); r == pipeline.MetricKeyTooLong || reason == pipeline.Accepted {
			reason, detail = r, d
		}
	}
	if keys > maxMetrics {
		return pipeline.TooManyMetrics, fmt.Sprintf("%d metrics, the limit is %d", keys, maxMetrics)
	}
	return reason, detail
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
