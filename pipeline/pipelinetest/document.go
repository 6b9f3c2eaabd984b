// Package pipelinetest makes messages for tests: as devices write them, as
// producers in several languages pass them on, broken, and meant to do harm. Only
// tests import it.
package pipelinetest

import (
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode/utf16"
	"unicode/utf8"
)

// A document as a device writes it: what a parser would keep, and what it would
// lose (the text of numbers, the order and repetition of members).
type (
	// Object is a JSON object.
	Object []Member
	// Member is one of its members.
	Member struct {
		Name  string
		Value any // Object, []any, Number, string, bool, nil
	}
	// Number is a number's literal.
	Number string
)

// Last is the value that counts of a name; nil where there is none.
func (o Object) Last(name string) any {
	var v any
	for _, m := range o {
		if m.Name == name {
			v = m.Value
		}
	}
	return v
}

// Serializer is a way to write JSON.
type Serializer struct {
	comma, colon string
	ascii        bool // \u escapes for all but ASCII
	html         bool // and for <, >, &
	number       func(Number) string
	order        func([]Member) []Member
	dedupe       bool
}

// How devices write, and the producers that pass their messages on.
var (
	AsDevice = Serializer{comma: ",", colon: ":", number: func(n Number) string { return string(n) }, order: asIs}
	Spaced   = Serializer{comma: " ,\r\n\t", colon: " : ", ascii: true, number: AsDevice.number, order: asIs}

	Producers = map[string]Serializer{
		"Go":         {comma: ",", colon: ":", html: true, number: inGo, order: sorted, dedupe: true},
		"JavaScript": {comma: ",", colon: ":", number: inGo, order: arrayIndexFirst, dedupe: true},
		"Python":     {comma: ", ", colon: ": ", ascii: true, number: inPython, order: asIs, dedupe: true},
		"verbatim":   AsDevice,
	}
)

// Append appends v, of one of the types that a Member's value has.
func (s Serializer) Append(dst []byte, v any) []byte {
	switch v := v.(type) {
	case Object:
		return s.object(dst, v)
	case []any:
		dst = append(dst, '[')
		for i, e := range v {
			if i > 0 {
				dst = append(dst, s.comma...)
			}
			dst = s.Append(dst, e)
		}
		return append(dst, ']')
	case Number:
		return append(dst, s.number(v)...)
	case string:
		return s.Quote(dst, v)
	case bool:
		return strconv.AppendBool(dst, v)
	}
	return append(dst, "null"...)
}

func (s Serializer) object(dst []byte, members Object) []byte {
	kept := []Member(members)
	if s.dedupe {
		kept = nil
		for _, m := range members {
			if i := slices.IndexFunc(kept, func(k Member) bool { return k.Name == m.Name }); i >= 0 {
				kept[i].Value = m.Value
			} else {
				kept = append(kept, m)
			}
		}
	}
	dst = append(dst, '{')
	for i, m := range s.order(kept) {
		if i > 0 {
			dst = append(dst, s.comma...)
		}
		dst = append(s.Quote(dst, m.Name), s.colon...)
		dst = s.Append(dst, m.Value)
	}
	return append(dst, '}')
}

// Quote appends text as a JSON string.
func (s Serializer) Quote(dst []byte, text string) []byte {
	dst = append(dst, '"')
	for _, r := range text {
		switch {
		case r == '"' || r == '\\':
			dst = append(dst, '\\', byte(r))
		case r < 0x20 || s.ascii && r > 0x7e && r <= 0xffff || s.html && (r == '<' || r == '>' || r == '&' || r == 0x2028):
			dst = fmt.Appendf(dst, `\u%04x`, r)
		case s.ascii && r > 0xffff:
			high, low := utf16.EncodeRune(r)
			dst = fmt.Appendf(dst, `\u%04X\u%04x`, high, low)
		default:
			dst = utf8.AppendRune(dst, r)
		}
	}
	return append(dst, '"')
}

func float(n Number) float64 {
	f, err := strconv.ParseFloat(string(n), 64)
	if err != nil {
		panic(err) // the generator stays within range
	}
	return f
}

// inGo writes a number as Go and, but for details, JavaScript do.
func inGo(n Number) string {
	b, err := json.Marshal(float(n))
	if err != nil {
		panic(err)
	}
	return string(b)
}

// inPython keeps integers exactly, however long, and writes floats as repr does.
func inPython(n Number) string {
	if !strings.ContainsAny(string(n), ".eE") {
		if n == "-0" {
			return "0"
		}
		return string(n)
	}
	f := float(n)
	s := strconv.FormatFloat(f, 'e', -1, 64)
	if exp, _ := strconv.Atoi(s[strings.IndexByte(s, 'e')+1:]); exp >= -4 && exp < 16 {
		s = strconv.FormatFloat(f, 'f', -1, 64)
		if !strings.Contains(s, ".") {
			s += ".0"
		}
	}
	return s
}

func sorted(m []Member) []Member {
	m = slices.Clone(m)
	slices.SortStableFunc(m, func(a, b Member) int { return strings.Compare(a.Name, b.Name) })
	return m
}

// arrayIndexFirst is the order of a JavaScript object's properties.
func arrayIndexFirst(m []Member) []Member {
	m = slices.Clone(m)
	slices.SortStableFunc(m, func(a, b Member) int {
		x, errX := strconv.ParseUint(a.Name, 10, 32)
		y, errY := strconv.ParseUint(b.Name, 10, 32)
		switch {
		case errX == nil && errY == nil:
			return int(x) - int(y)
		case errX == nil:
			return -1
		case errY == nil:
			return 1
		}
		return 0
	})
	return m
}

func asIs(m []Member) []Member { return m }
