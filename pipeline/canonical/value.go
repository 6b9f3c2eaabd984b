package canonical

import (
	"iter"
	"math"
	"strconv"
	"strings"
	"unsafe"
)

// Value is one value of a Doc, valid until the Doc parses again. The zero Value
// is of KindNone and stands for an absent member; every method takes it.
type Value struct {
	d *Doc
	i int32
}

// Root returns the value that Parse read.
func (d *Doc) Root() Value {
	if len(d.nodes) == 0 {
		return Value{}
	}
	return Value{d: d}
}

// Kind returns the value's kind.
func (v Value) Kind() Kind {
	if v.d == nil {
		return KindNone
	}
	return v.d.nodes[v.i].kind
}

// IsNull reports whether the value is absent or null.
func (v Value) IsNull() bool { return v.Kind() <= KindNull }

// Len returns the number of members or elements as written; duplicate members
// are counted each.
func (v Value) Len() int {
	if v.d == nil {
		return 0
	}
	return int(v.d.nodes[v.i].n)
}

// Get returns the object's member of exactly that name, the last one if there
// are several, or the zero Value.
func (v Value) Get(name string) Value {
	var found Value
	if v.Kind() != KindObject {
		return found
	}
	i := v.i + 1
	for range v.d.nodes[v.i].n {
		if v.d.text(i) == name {
			found = Value{v.d, i + 1}
		}
		i = v.d.nodes[i+1].next
	}
	return found
}

// Each walks an object's members as they are written, duplicates included: one
// pass for a caller that keeps the last of each name it knows.
func (v Value) Each(visit func(name string, member Value)) {
	if v.Kind() != KindObject {
		return
	}
	i := v.i + 1
	for range v.d.nodes[v.i].n {
		visit(v.d.text(i), Value{v.d, i + 1})
		i = v.d.nodes[i+1].next
	}
}

// Members walks an object's members in canonical order, of duplicates the last.
// A walk inside a walk is fine; the Doc must not be parsed into meanwhile.
func (v Value) Members() iter.Seq2[string, Value] {
	return func(yield func(string, Value) bool) {
		if v.Kind() != KindObject {
			return
		}
		from := v.d.sortMembers(v.i)
		defer func() { v.d.order = v.d.order[:from] }()
		for k, end := from, len(v.d.order); k < end; k++ {
			if v.d.shadowed(k, end) {
				continue
			}
			key := v.d.order[k]
			if !yield(v.d.text(key), Value{v.d, key + 1}) {
				return
			}
		}
	}
}

// DeeperThan reports whether objects and arrays are nested in the value to more
// than n levels, itself included.
func (v Value) DeeperThan(n int) bool {
	if v.d == nil || v.d.deepest <= n {
		return false
	}
	var open []int32 // where the containers around the current node end
	for i := v.i; i < v.d.nodes[v.i].next; i++ {
		for len(open) > 0 && i >= open[len(open)-1] {
			open = open[:len(open)-1]
		}
		if nd := &v.d.nodes[i]; nd.kind >= KindArray {
			if open = append(open, nd.next); len(open) > n {
				return true
			}
		}
	}
	return false
}

// Text returns a string's content and whether the value is a string. A lone
// surrogate is in it in its three-byte form, which is not valid UTF-8. The
// result shares memory with the document: it lives as long as the parsed bytes
// do if Parse is called no more, so clone what outlives the Doc.
func (v Value) Text() (string, bool) {
	if v.Kind() != KindString {
		return "", false
	}
	return v.d.text(v.i), true
}

func (d *Doc) text(i int32) string {
	nd := &d.nodes[i]
	buf := d.src
	if nd.escaped {
		buf = d.arena
	}
	if nd.start == nd.end {
		return ""
	}
	return unsafe.String(&buf[nd.start], int(nd.end-nd.start))
}

// Float returns a number's value as a double, and whether the value is a number.
// Beyond the range of a double it is an infinity. Minus zero is zero, as in the
// canonical form: some serializers write it so, and both copies must say the same.
func (v Value) Float() (float64, bool) {
	if v.Kind() != KindNumber {
		return 0, false
	}
	f, _ := strconv.ParseFloat(v.literal(), 64) // the grammar is checked; out of range gives ±Inf
	if f == 0 {
		f = 0
	}
	return f, true
}

// Int returns a number as a 64-bit integer with its fraction cut off. Beyond 2^53
// it is the integer of the nearest double, whichever way the number is written:
// a copy that went through JavaScript has lost the rest, and both copies must say
// the same. It is false for what is no number or does not fit.
func (v Value) Int() (int64, bool) {
	if v.Kind() != KindNumber {
		return 0, false
	}
	if lit := v.literal(); len(lit) <= 15 && !strings.ContainsAny(lit, ".eE") {
		n, err := strconv.ParseInt(lit, 10, 64)
		return n, err == nil
	}
	f, _ := v.Float()
	f = math.Trunc(f)
	if f < math.MinInt64 || f >= math.MaxInt64 {
		return 0, false
	}
	return int64(f), true
}

// EachNumber visits the numbers in the value, itself included, as they are written.
// The texts share memory with the document.
func (v Value) EachNumber(visit func(literal string)) {
	if v.d == nil {
		return
	}
	for i := v.i; i < v.d.nodes[v.i].next; i++ {
		if v.d.nodes[i].kind == KindNumber {
			visit(Value{v.d, i}.literal())
		}
	}
}

func (v Value) literal() string {
	nd := &v.d.nodes[v.i]
	return unsafe.String(&v.d.src[nd.start], int(nd.end-nd.start))
}
