// Package redact takes the devices' secret, the provision_token, out of what people
// are shown of messages.
package redact

import (
	"bytes"
	"encoding/json"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// tokenMember holds a device's secret. Nothing shows it.
const tokenMember = "provision_token"

// Mark stands where the secret was.
const Mark = "[redacted]"

// JSON takes the secret out of JSON, however deep it is; what stands in strings goes
// through text, which is [Cut] or [Whole]. It is not ok for what is no JSON.
func JSON(src []byte, text func(string) string) (v any, ok bool) {
	if !json.Valid(src) {
		return nil, false
	}
	d := json.NewDecoder(bytes.NewReader(src))
	d.UseNumber()
	if err := d.Decode(&v); err != nil {
		return nil, false
	}
	return value(v, text), true
}

func value(v any, text func(string) string) any {
	switch v := v.(type) {
	case map[string]any:
		for name, member := range v {
			if strings.EqualFold(name, tokenMember) {
				v[name] = Mark
			} else {
				v[name] = value(member, text)
			}
		}
	case []any:
		for i := range v {
			v[i] = value(v[i], text)
		}
	case string:
		return text(v)
	}
	return v
}

// Cut takes the secret out of a text: member by member where it is JSON, and
// otherwise by leaving out all that follows the member's name, since nobody can
// tell where the secret ends. A text without it comes back as it is.
func Cut(s string) string {
	end, found := findToken(s)
	if !found {
		return s
	}
	if v, ok := JSON([]byte(s), Cut); ok {
		return string(Encode(v, ""))
	}
	return s[:end] + Mark
}

// Whole is Cut, but leaves out the whole of a text that names the secret and is no
// JSON.
func Whole(s string) string {
	if _, found := findToken(s); !found {
		return s
	}
	if v, ok := JSON([]byte(s), Whole); ok {
		return string(Encode(v, ""))
	}
	return Mark
}

// Encode writes what JSON returned, on several lines where indent is not empty.
func Encode(v any, indent string) []byte {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	e.SetIndent("", indent)
	_ = e.Encode(v) // it came out of JSON
	return bytes.TrimSuffix(b.Bytes(), []byte("\n"))
}

// findToken looks for the member's name, in any case and with any escapes, and
// returns where it ends.
func findToken(s string) (end int, found bool) {
	matched := 0
	for i := 0; i < len(s); {
		c, n := unescaped(s[i:])
		i += n
		switch {
		case c == 0: // only backslashes
		case c == tokenMember[matched]:
			if matched++; matched == len(tokenMember) {
				return i, true
			}
		case c == tokenMember[0]:
			matched = 1
		default:
			matched = 0
		}
	}
	return 0, false
}

// unescaped reads a character, in lower case, through any number of backslashes
// before it; 0 for backslashes alone, 0xFF for what is not in the member's name.
func unescaped(s string) (c byte, n int) {
	for n < len(s) && s[n] == '\\' {
		n++
	}
	if n == len(s) {
		return 0, n
	}
	if n > 0 && s[n] == 'u' && n+5 <= len(s) {
		if r, err := strconv.ParseUint(s[n+1:n+5], 16, 16); err == nil {
			if r >= utf8.RuneSelf {
				return 0xFF, n + 5
			}
			return byte(unicode.ToLower(rune(r))), n + 5
		}
	}
	if s[n] >= utf8.RuneSelf {
		return 0xFF, n + 1
	}
	return byte(unicode.ToLower(rune(s[n]))), n + 1
}
