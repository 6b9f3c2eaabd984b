package canonical

import (
	"math"
	"slices"
	"strconv"
)

// AppendCanonical appends the value's canonical form to dst.
func (v Value) AppendCanonical(dst []byte) []byte {
	return v.AppendCanonicalWithout(dst, "")
}

// AppendCanonicalWithout is AppendCanonical for an object less its own member
// of that name (members further in are untouched).
func (v Value) AppendCanonicalWithout(dst []byte, name string) []byte {
	if v.d == nil {
		return append(dst, "null"...)
	}
	return v.d.append(dst, v.i, name)
}

// AppendStorable is AppendCanonical, and reports whether jsonb can hold the
// result: no U+0000, no lone surrogate, no number beyond the range of a double.
func (v Value) AppendStorable(dst []byte) (out []byte, ok bool) {
	if v.d == nil {
		return append(dst, "null"...), true
	}
	v.d.bad = false
	out = v.d.append(dst, v.i, "")
	return out, !v.d.bad
}

func (d *Doc) append(dst []byte, i int32, without string) []byte {
	nd := &d.nodes[i]
	switch nd.kind {
	case KindNull:
		return append(dst, "null"...)
	case KindFalse:
		return append(dst, "false"...)
	case KindTrue:
		return append(dst, "true"...)
	case KindNumber:
		return appendNumber(dst, Value{d, i})
	case KindString:
		return d.appendString(dst, i)
	case KindArray:
		dst = append(dst, '[')
		at := i + 1
		for k := range nd.n {
			if k > 0 {
				dst = append(dst, ',')
			}
			dst = d.append(dst, at, "")
			at = d.nodes[at].next
		}
		return append(dst, ']')
	default:
		return d.appendObject(dst, i, without)
	}
}

func (d *Doc) appendObject(dst []byte, i int32, without string) []byte {
	from := d.sortMembers(i)
	end := len(d.order)
	dst = append(dst, '{')
	first := true
	for k := from; k < end; k++ {
		key := d.order[k]
		if d.shadowed(k, end) || without != "" && d.text(key) == without {
			continue
		}
		if !first {
			dst = append(dst, ',')
		}
		first = false
		dst = d.appendString(dst, key)
		dst = append(dst, ':')
		dst = d.append(dst, key+1, "")
	}
	d.order = d.order[:from]
	return append(dst, '}')
}

// sortMembers pushes an object's keys onto d.order, sorted by their UTF-16 code
// units with equal ones in document order, and returns where they begin. Whoever
// calls it cuts d.order back: it is a stack, since objects nest.
func (d *Doc) sortMembers(i int32) (from int) {
	from = len(d.order)
	at := i + 1
	for range d.nodes[i].n {
		d.order = append(d.order, at)
		at = d.nodes[at+1].next
	}
	keys := d.order[from:]
	if len(keys) > insertionMax {
		slices.SortStableFunc(keys, func(a, b int32) int { return compareUTF16(d.text(a), d.text(b)) })
		return from
	}
	for k := 1; k < len(keys); k++ {
		key, text := keys[k], d.text(keys[k])
		j := k
		for ; j > 0 && compareUTF16(d.text(keys[j-1]), text) > 0; j-- {
			keys[j] = keys[j-1]
		}
		keys[j] = key
	}
	return from
}

// insertionMax is the most members that are sorted by plain insertion, which most
// objects in the field are quickest with.
const insertionMax = 16

// shadowed reports whether the key at d.order[k] is followed by a duplicate.
func (d *Doc) shadowed(k, end int) bool {
	return k+1 < end && d.text(d.order[k+1]) == d.text(d.order[k])
}

// compareUTF16 orders UTF-8 strings by their UTF-16 code units. The two orders
// differ only where a character beyond U+FFFF (surrogates D800–DFFF in UTF-16,
// lead byte F0 and up in UTF-8) meets one of U+E000–U+FFFF (lead byte EE or EF).
func compareUTF16(a, b string) int {
	n := min(len(a), len(b))
	for i := range n {
		x, y := a[i], b[i]
		if x == y {
			continue
		}
		if x >= 0xEE && y >= 0xEE && (x >= 0xF0) != (y >= 0xF0) {
			return int(y) - int(x)
		}
		return int(x) - int(y)
	}
	return len(a) - len(b)
}

const hexDigits = "0123456789abcdef"

func (d *Doc) appendString(dst []byte, i int32) []byte {
	nd := &d.nodes[i]
	d.bad = d.bad || nd.bad
	dst = append(dst, '"')
	s := d.text(i)
	if !nd.escaped {
		// No escapes and no control characters: the text is canonical as it stands.
		dst = append(dst, s...)
		return append(dst, '"')
	}
	for k := 0; k < len(s); k++ {
		c := s[k]
		switch {
		case c == '"' || c == '\\':
			dst = append(dst, '\\', c)
		case c >= 0x20:
			if nd.bad && c == 0xED && k+2 < len(s) && s[k+1] >= 0xA0 { // a lone surrogate
				r := uint16(c&0x0F)<<12 | uint16(s[k+1]&0x3F)<<6 | uint16(s[k+2]&0x3F)
				dst = append(dst, '\\', 'u', hexDigits[r>>12], hexDigits[r>>8&15], hexDigits[r>>4&15], hexDigits[r&15])
				k += 2
				continue
			}
			dst = append(dst, c)
		case c == '\b':
			dst = append(dst, '\\', 'b')
		case c == '\t':
			dst = append(dst, '\\', 't')
		case c == '\n':
			dst = append(dst, '\\', 'n')
		case c == '\f':
			dst = append(dst, '\\', 'f')
		case c == '\r':
			dst = append(dst, '\\', 'r')
		default:
			dst = append(dst, '\\', 'u', '0', '0', hexDigits[c>>4], hexDigits[c&15])
		}
	}
	return append(dst, '"')
}

// appendNumber writes a number as ECMAScript does (RFC 8785, section 3.2.2.3).
func appendNumber(dst []byte, v Value) []byte {
	nd := &v.d.nodes[v.i]
	if lit := v.d.src[nd.start:nd.end]; isCanonicalNumber(lit) {
		return append(dst, lit...)
	}
	f, _ := v.Float()
	switch {
	case f == 0:
		return append(dst, '0')
	case math.IsInf(f, 0):
		v.d.bad = true
		if f < 0 {
			dst = append(dst, '-')
		}
		return append(dst, "1e999"...)
	}
	if a := math.Abs(f); a >= 1e-6 && a < 1e21 {
		return strconv.AppendFloat(dst, f, 'f', -1, 64)
	}
	from := len(dst)
	dst = strconv.AppendFloat(dst, f, 'e', -1, 64)
	// Go pads the exponent to two digits, ECMAScript does not.
	if n := len(dst); n-from >= 4 && dst[n-2] == '0' && (dst[n-3] == '-' || dst[n-3] == '+') {
		dst[n-2] = dst[n-1]
		dst = dst[:n-1]
	}
	return dst
}

// isCanonicalNumber reports whether a literal is certain to be its own canonical
// form, which spares most numbers the way through a double: a plain decimal of
// at most 15 digits survives it, unless it has a trailing zero in the fraction,
// is a negative zero or is smaller than 1e-6.
func isCanonicalNumber(lit []byte) bool {
	if len(lit) > 16 {
		return false
	}
	digits, point := 0, -1
	for i, c := range lit {
		switch {
		case c >= '0' && c <= '9':
			digits++
		case c == '.':
			point = i
		case c == '-' && i == 0:
		default:
			return false
		}
	}
	if digits > 15 {
		return false
	}
	if point < 0 {
		return lit[0] != '-' || lit[1] != '0'
	}
	if lit[len(lit)-1] == '0' {
		return false
	}
	if lit[point-1] != '0' || point-1 > 0 && lit[point-2] != '-' {
		return true // does not begin with "0." or "-0."
	}
	zeros := 0
	for _, c := range lit[point+1:] {
		if c != '0' {
			break
		}
		zeros++
	}
	return zeros < 6
}
