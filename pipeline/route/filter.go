package route

import (
	"errors"
	"fmt"

	"github.com/crossfade-io/crossfade/pipeline"
	"github.com/crossfade-io/crossfade/pipeline/canonical"
)

// payloadFilter is conditions that must all hold.
type payloadFilter []condition

// condition is what must hold of one name: either all comparisons, or being equal
// to the plain value.
type condition struct {
	name        string
	comparisons []comparison
	plain       *plainValue
}

type comparison struct {
	operator operator
	operand  float64
}

type operator string

const (
	greater        operator = "$gt"
	greaterOrEqual operator = "$gte"
	less           operator = "$lt"
	lessOrEqual    operator = "$lte"
	equal          operator = "$eq"
	notEqual       operator = "$ne"
)

// plainValue is compared as text. Where the text is that of a number, numbers are
// compared as such, which comes to the same and costs no memory.
type plainValue struct {
	text     string
	number   float64
	isNumber bool
}

// maxFilterDepth is how deep a payload filter may be nested.
const maxFilterDepth = 32

// parsePayloadFilter reads the column's JSON; "" is NULL.
func parsePayloadFilter(text string) (payloadFilter, error) {
	if text == "" {
		return nil, nil
	}
	var doc canonical.Doc
	if err := doc.Parse([]byte(text)); err != nil {
		return nil, err
	}
	root := doc.Root()
	switch {
	case root.IsNull():
		return nil, nil
	case root.Kind() != canonical.KindObject:
		return nil, errors.New("it is not a JSON object")
	case root.DeeperThan(maxFilterDepth):
		return nil, errors.New("it is nested too deeply")
	}
	var filter payloadFilter
	for name, v := range root.Members() {
		c, err := parseCondition(name, v)
		if err != nil {
			return nil, fmt.Errorf("%q: %w", name, err)
		}
		filter = append(filter, c)
	}
	return filter, nil
}

func parseCondition(name string, v canonical.Value) (condition, error) {
	c := condition{name: string([]byte(name))} // the text it is part of is not kept
	if v.Kind() != canonical.KindObject {
		c.plain = newPlainValue(v)
		return c, nil
	}
	for name, operand := range v.Members() {
		o := operator(string([]byte(name)))
		switch o {
		case greater, greaterOrEqual, less, lessOrEqual, equal, notEqual:
		default:
			return c, fmt.Errorf("unknown operator %q; use $gt, $gte, $lt, $lte, $eq or $ne", name)
		}
		number, ok := operand.Float()
		if !ok {
			return c, fmt.Errorf("%s compares numbers, and its operand is none", o)
		}
		c.comparisons = append(c.comparisons, comparison{o, number})
	}
	return c, nil
}

func newPlainValue(v canonical.Value) *plainValue {
	s, ok := v.Text()
	if ok {
		s = string([]byte(s))
	} else {
		s = string(v.AppendCanonical(nil))
	}
	p := &plainValue{text: s}
	var doc canonical.Doc
	if doc.Parse([]byte(s)) == nil && doc.Root().Kind() == canonical.KindNumber {
		p.number, _ = doc.Root().Float()
		p.isNumber = string(doc.Root().AppendCanonical(nil)) == s
	}
	return p
}

// match reports whether all conditions hold of a message. It allocates only where
// an array or object is compared as text.
func (f payloadFilter) match(m *pipeline.Message) bool {
	for i := range f {
		if !f[i].holds(valued(member(m, f[i].name))) {
			return false
		}
	}
	return true
}

// hold is match with the values already looked up; numbers says which is whose.
func (f payloadFilter) hold(values []value, numbers []int32) bool {
	for i := range f {
		if !f[i].holds(values[numbers[i]]) {
			return false
		}
	}
	return true
}

// value is a member with the number that it is.
type value struct {
	canonical.Value
	number   float64
	isNumber bool
}

func valued(v canonical.Value) value {
	number, ok := v.Float()
	return value{v, number, ok}
}

func (c *condition) holds(v value) bool {
	switch {
	case v.Kind() == canonical.KindNone:
		return false
	case c.plain != nil:
		return c.plain.equals(v)
	case len(c.comparisons) == 0:
		return true
	case !v.isNumber:
		return false
	}
	for _, cmp := range c.comparisons {
		if !cmp.holds(v.number) {
			return false
		}
	}
	return true
}

func (c comparison) holds(number float64) bool {
	switch c.operator {
	case greater:
		return number > c.operand
	case greaterOrEqual:
		return number >= c.operand
	case less:
		return number < c.operand
	case lessOrEqual:
		return number <= c.operand
	case equal:
		return number == c.operand
	default:
		return number != c.operand
	}
}

func (p *plainValue) equals(v value) bool {
	switch v.Kind() {
	case canonical.KindString:
		s, _ := v.Text()
		return s == p.text
	case canonical.KindNumber:
		// 1e999 and 1e9999 have one text, and are one infinity.
		return p.isNumber && v.number == p.number
	case canonical.KindTrue:
		return p.text == "true"
	case canonical.KindFalse:
		return p.text == "false"
	case canonical.KindNull:
		return p.text == "null"
	}
	return len(p.text) > 0 && (p.text[0] == '[' || p.text[0] == '{') && string(v.AppendCanonical(nil)) == p.text
}
