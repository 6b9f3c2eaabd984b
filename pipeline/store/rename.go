package store

import (
	"slices"
	"strings"
	"unicode/utf16"

	"github.com/crossfade-io/crossfade/pipeline/canonical"
)

// visitMetrics walks the metrics of a message under the names that they are stored
// by. Of duplicate members it may visit several, the one that counts last; where
// that may be a null, which visitors skip, it visits none but those that count.
func visitMetrics(e *Entry, visit func(key string, v canonical.Value)) {
	metrics := e.Msg.Fields.Metrics
	switch {
	case renames(e):
		for _, m := range renamed(e) {
			visit(m.key, m.value)
		}
	case hasNull(metrics):
		for key, v := range metrics.Members() {
			visit(key, v)
		}
	default:
		metrics.Each(visit)
	}
}

func hasNull(metrics canonical.Value) bool {
	found := false
	metrics.Each(func(_ string, v canonical.Value) { found = found || v.IsNull() })
	return found
}

// renames reports whether the device's modules rename metrics of this message.
func renames(e *Entry) bool {
	return len(e.Device.KeyMap) > 0 && e.Msg.MsgType == typeTelemetry
}

type metric struct {
	key   string
	value canonical.Value
}

// renamed returns the metrics under their new names, in canonical order. A metric
// that has a name by itself keeps it before one that is renamed to it; of several
// that are renamed to one name the first in canonical order of the old names gets
// it. The others are dropped from the row: there is one value to a name.
func renamed(e *Entry) []metric {
	var list, late []metric
	taken := make(map[string]bool)
	for key, v := range e.Msg.Fields.Metrics.Members() {
		if to, ok := e.Device.KeyMap[key]; ok && to != key {
			late = append(late, metric{to, v})
			continue
		}
		taken[key] = true
		list = append(list, metric{key, v})
	}
	for _, m := range late {
		if !taken[m.key] {
			taken[m.key] = true
			list = append(list, m)
		}
	}
	slices.SortFunc(list, func(a, b metric) int {
		return slices.Compare(utf16.Encode([]rune(a.key)), utf16.Encode([]rune(b.key)))
	})
	return list
}

// storedMetrics is the message's metrics as telemetry has them: canonical JSON,
// keys renamed.
func storedMetrics(e *Entry) []byte {
	if !renames(e) {
		json, _ := e.Msg.Metrics()
		return json
	}
	json := []byte{'{'}
	for i, m := range renamed(e) {
		if i > 0 {
			json = append(json, ',')
		}
		json = append(appendJSONString(json, m.key), ':')
		json = m.value.AppendCanonical(json)
	}
	return append(json, '}')
}

// appendJSONString appends s as RFC 8785 (section 3.2.2.2) writes it.
func appendJSONString(dst []byte, s string) []byte {
	const hex = "0123456789abcdef"
	const short = "\b\t\n\f\r"
	dst = append(dst, '"')
	for i := range len(s) {
		switch c := s[i]; {
		case c == '"' || c == '\\':
			dst = append(dst, '\\', c)
		case c >= ' ':
			dst = append(dst, c)
		case strings.IndexByte(short, c) >= 0:
			dst = append(dst, '\\', "btnfr"[strings.IndexByte(short, c)])
		default:
			dst = append(dst, '\\', 'u', '0', '0', hex[c>>4], hex[c&15])
		}
	}
	return append(dst, '"')
}
