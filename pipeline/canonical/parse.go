package canonical

import (
	"errors"
	"fmt"
	"unicode/utf16"
	"unicode/utf8"
)

// MaxDepth is the deepest nesting of objects and arrays that [Doc.Parse]
// accepts, the same as encoding/json's. It only protects the stack: what may be
// stored is far shallower (see [Value.DeeperThan]).
const MaxDepth = 10_000

// Kind is the type of a JSON value.
type Kind uint8

// The kinds of values. KindNone is the kind of a value that is not there.
const (
	KindNone Kind = iota
	KindNull
	KindFalse
	KindTrue
	KindNumber
	KindString
	KindArray
	KindObject
)

// ErrInvalid is what every error of [Doc.Parse] wraps.
var ErrInvalid = errors.New("invalid JSON")

// node is one value on the tape. The children of a container follow it, an
// object's as key, value, key, value; next is the node after the whole subtree.
type node struct {
	kind    Kind
	escaped bool // string: text stands in the arena, not in src
	bad     bool // string: holds U+0000 or a lone surrogate
	start   int32
	end     int32
	next    int32
	n       int32 // members or elements
}

// Doc is a parsed document. Its zero value is ready; parsing again reuses its
// memory and ends the life of every Value taken from it. It keeps a reference to
// the bytes it parsed. Not for concurrent use.
type Doc struct {
	src   []byte
	nodes []node
	arena []byte
	order []int32
	bad   bool // set while writing, see AppendStorable
	pos   int
	depth int
	// deepest is how deep the document is nested.
	deepest int
}

// maxKept bounds the memory that a Doc keeps for the next document, in nodes, in
// bytes of text and in members of its largest object: one huge document must not
// weigh on all that come after it.
const maxKept = 64 << 10

// Forget lets go of the document, and of memory that only a huge one needs.
func (d *Doc) Forget() {
	d.src = nil
	if cap(d.nodes) > maxKept || cap(d.arena) > maxKept || cap(d.order) > maxKept {
		*d = Doc{}
	}
}

// Parse reads exactly one JSON value of valid UTF-8, of any kind, with nothing
// but white space around it. src must not change while the Doc is in use.
func (d *Doc) Parse(src []byte) error {
	d.src, d.nodes, d.arena, d.pos, d.depth = src, d.nodes[:0], d.arena[:0], 0, 0
	d.deepest = 0
	if len(src) > 1<<30 {
		return fmt.Errorf("%w: %d bytes is more than can be read", ErrInvalid, len(src))
	}
	d.space()
	if err := d.value(); err != nil {
		return err
	}
	d.space()
	if d.pos != len(d.src) {
		return d.fail("unexpected data after the value")
	}
	return nil
}

func (d *Doc) fail(what string) error {
	return fmt.Errorf("%w: %s at byte %d", ErrInvalid, what, d.pos)
}

func (d *Doc) space() {
	for d.pos < len(d.src) {
		switch d.src[d.pos] {
		case ' ', '\t', '\n', '\r':
			d.pos++
		default:
			return
		}
	}
}

func (d *Doc) value() error {
	if d.pos >= len(d.src) {
		return d.fail("unexpected end")
	}
	switch c := d.src[d.pos]; c {
	case '{':
		return d.object()
	case '[':
		return d.array()
	case '"':
		return d.str()
	case 't':
		return d.literal("true", KindTrue)
	case 'f':
		return d.literal("false", KindFalse)
	case 'n':
		return d.literal("null", KindNull)
	default:
		if c == '-' || c >= '0' && c <= '9' {
			return d.number()
		}
		return d.fail("unexpected character")
	}
}

func (d *Doc) literal(word string, k Kind) error {
	if len(d.src)-d.pos < len(word) || string(d.src[d.pos:d.pos+len(word)]) != word {
		return d.fail("unexpected word")
	}
	i := d.open(k)
	d.pos += len(word)
	d.close(i, 0)
	return nil
}

// open appends a node that starts here; close ends it here.
func (d *Doc) open(k Kind) int {
	d.nodes = append(d.nodes, node{kind: k, start: int32(d.pos)})
	return len(d.nodes) - 1
}

func (d *Doc) close(i int, n int32) {
	nd := &d.nodes[i]
	nd.end, nd.next, nd.n = int32(d.pos), int32(len(d.nodes)), n
}

func (d *Doc) enter() error {
	if d.depth++; d.depth > MaxDepth {
		return d.fail("nested too deeply")
	}
	d.deepest = max(d.deepest, d.depth)
	d.pos++
	d.space()
	return nil
}

func (d *Doc) object() error {
	i := d.open(KindObject)
	if err := d.enter(); err != nil {
		return err
	}
	var n int32
	for first := true; ; first = false {
		if d.pos < len(d.src) && d.src[d.pos] == '}' && first {
			break
		}
		if d.pos >= len(d.src) || d.src[d.pos] != '"' {
			return d.fail("expected a member name")
		}
		if err := d.str(); err != nil {
			return err
		}
		d.space()
		if d.pos >= len(d.src) || d.src[d.pos] != ':' {
			return d.fail("expected a colon")
		}
		d.pos++
		d.space()
		if err := d.value(); err != nil {
			return err
		}
		n++
		if more, err := d.separator('}'); err != nil {
			return err
		} else if !more {
			break
		}
	}
	d.pos++
	d.depth--
	d.close(i, n)
	return nil
}

func (d *Doc) array() error {
	i := d.open(KindArray)
	if err := d.enter(); err != nil {
		return err
	}
	var n int32
	for first := true; ; first = false {
		if d.pos < len(d.src) && d.src[d.pos] == ']' && first {
			break
		}
		if err := d.value(); err != nil {
			return err
		}
		n++
		if more, err := d.separator(']'); err != nil {
			return err
		} else if !more {
			break
		}
	}
	d.pos++
	d.depth--
	d.close(i, n)
	return nil
}

// separator reads what follows a member or element: a comma (more to come) or,
// left in place, the closing bracket.
func (d *Doc) separator(end byte) (more bool, err error) {
	d.space()
	if d.pos >= len(d.src) {
		return false, d.fail("unexpected end")
	}
	switch d.src[d.pos] {
	case ',':
		d.pos++
		d.space()
		return true, nil
	case end:
		return false, nil
	}
	return false, d.fail("expected a comma or a closing bracket")
}

// number checks the grammar only; the value is read when somebody asks.
func (d *Doc) number() error {
	i := d.open(KindNumber)
	if d.src[d.pos] == '-' {
		d.pos++
	}
	switch {
	case d.pos < len(d.src) && d.src[d.pos] == '0':
		d.pos++
	case !d.digits():
		return d.fail("expected a digit")
	}
	if d.pos < len(d.src) && d.src[d.pos] == '.' {
		d.pos++
		if !d.digits() {
			return d.fail("expected a digit after the point")
		}
	}
	if d.pos < len(d.src) && d.src[d.pos]|0x20 == 'e' {
		d.pos++
		if d.pos < len(d.src) && (d.src[d.pos] == '+' || d.src[d.pos] == '-') {
			d.pos++
		}
		if !d.digits() {
			return d.fail("expected a digit in the exponent")
		}
	}
	d.close(i, 0)
	return nil
}

func (d *Doc) digits() bool {
	from := d.pos
	for d.pos < len(d.src) && d.src[d.pos] >= '0' && d.src[d.pos] <= '9' {
		d.pos++
	}
	return d.pos > from
}

// str reads a string. One without escapes stays where it is in src; one with
// escapes is decoded into the arena, lone surrogates in their three-byte form.
func (d *Doc) str() error {
	i := d.open(KindString)
	d.pos++
	from := d.pos
	for d.plain(); d.pos < len(d.src); d.plain() {
		c := d.src[d.pos]
		switch {
		case c == '"':
			nd := &d.nodes[i]
			nd.start, nd.end, nd.next = int32(from), int32(d.pos), int32(len(d.nodes))
			d.pos++
			return nil
		case c == '\\':
			return d.escapedString(i, from)
		case c < 0x20:
			return d.fail("control character in a string")
		default:
			if err := d.rune(); err != nil {
				return err
			}
		}
	}
	return d.fail("string without an end")
}

// plain skips what stands for itself in a string: ASCII but for control
// characters, quotes and backslashes.
func (d *Doc) plain() {
	src, pos := d.src, d.pos
	for pos < len(src) && plainByte[src[pos]] {
		pos++
	}
	d.pos = pos
}

var plainByte = func() (table [256]bool) {
	for c := 0x20; c < utf8.RuneSelf; c++ {
		table[c] = c != '"' && c != '\\'
	}
	return table
}()

func (d *Doc) rune() error {
	r, n := utf8.DecodeRune(d.src[d.pos:])
	if r == utf8.RuneError && n <= 1 {
		return d.fail("invalid UTF-8")
	}
	d.pos += n
	return nil
}

func (d *Doc) escapedString(i, from int) error {
	start := len(d.arena)
	for d.pos < len(d.src) {
		d.plain()
		d.arena = append(d.arena, d.src[from:d.pos]...)
		if d.pos == len(d.src) {
			break
		}
		c := d.src[d.pos]
		switch {
		case c == '"':
			nd := &d.nodes[i]
			nd.escaped, nd.start, nd.end = true, int32(start), int32(len(d.arena))
			d.pos++
			nd.next = int32(len(d.nodes))
			return nil
		case c == '\\':
			if err := d.escape(i); err != nil {
				return err
			}
			from = d.pos
		case c < 0x20:
			return d.fail("control character in a string")
		default:
			from = d.pos
			if err := d.rune(); err != nil {
				return err
			}
		}
	}
	return d.fail("string without an end")
}

var simpleEscapes = [256]byte{'"': '"', '\\': '\\', '/': '/', 'b': '\b', 'f': '\f', 'n': '\n', 'r': '\r', 't': '\t'}

func (d *Doc) escape(i int) error {
	if d.pos+1 >= len(d.src) {
		return d.fail("escape without an end")
	}
	c := d.src[d.pos+1]
	if out := simpleEscapes[c]; out != 0 {
		d.arena = append(d.arena, out)
		d.pos += 2
		return nil
	}
	if c != 'u' {
		return d.fail("unknown escape")
	}
	r, ok := d.hex4(d.pos + 2)
	if !ok {
		return d.fail("expected four hexadecimal digits")
	}
	d.pos += 6
	if utf16.IsSurrogate(r) {
		if r < 0xDC00 && d.pos+1 < len(d.src) && d.src[d.pos] == '\\' && d.src[d.pos+1] == 'u' {
			if low, ok := d.hex4(d.pos + 2); ok && low >= 0xDC00 && low <= 0xDFFF {
				d.pos += 6
				d.arena = utf8.AppendRune(d.arena, utf16.DecodeRune(r, low))
				return nil
			}
		}
		d.nodes[i].bad = true
		d.arena = append(d.arena, 0xE0|byte(r>>12), 0x80|byte(r>>6)&0x3F, 0x80|byte(r)&0x3F)
		return nil
	}
	if r == 0 {
		d.nodes[i].bad = true
	}
	d.arena = utf8.AppendRune(d.arena, r)
	return nil
}

func (d *Doc) hex4(at int) (rune, bool) {
	if at+4 > len(d.src) {
		return 0, false
	}
	var r rune
	for _, c := range d.src[at : at+4] {
		switch {
		case c >= '0' && c <= '9':
			r = r<<4 | rune(c-'0')
		case c|0x20 >= 'a' && c|0x20 <= 'f':
			r = r<<4 | rune(c|0x20-'a'+10)
		default:
			return 0, false
		}
	}
	return r, true
}
