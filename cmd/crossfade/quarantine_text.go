package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"
)

// printable makes what devices sent fit for a terminal: whatever would not show as a
// character (control characters, escape sequences, text direction marks, bytes that
// are no UTF-8) is written as an escape.
func printable(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); {
		r, n := utf8.DecodeRuneInString(s[i:])
		switch {
		case r == utf8.RuneError && n == 1:
			fmt.Fprintf(&b, `\x%02x`, s[i])
		case unicode.IsPrint(r):
			b.WriteRune(r)
		case r < 0x80:
			fmt.Fprintf(&b, `\x%02x`, r)
		default:
			fmt.Fprintf(&b, `\u%04x`, r)
		}
		i += n
	}
	return b.String()
}

// printableLines is printable for text of several lines.
func printableLines(s string) string {
	lines := strings.Split(s, "\n")
	for i := range lines {
		lines[i] = printable(lines[i])
	}
	return strings.Join(lines, "\n")
}

// writeJSON writes v on several lines, writeJSONLine on one. Both escape what
// encoding/json leaves alone and a terminal might obey.
func writeJSON(out io.Writer, v any) error { return writeEncoded(out, v, "  ") }

func writeJSONLine(out io.Writer, v any) error { return writeEncoded(out, v, "") }

func writeEncoded(out io.Writer, v any, indent string) error {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetIndent("", indent)
	if err := e.Encode(v); err != nil {
		return err
	}
	var safe strings.Builder
	for _, r := range b.String() {
		switch {
		case r < 0x7f || unicode.IsPrint(r):
			safe.WriteRune(r)
		default:
			for _, unit := range utf16.Encode([]rune{r}) {
				fmt.Fprintf(&safe, `\u%04x`, unit)
			}
		}
	}
	_, err := io.WriteString(out, safe.String())
	return err
}

// cell is printable text of at most n characters, or a dash for none.
func cell(s string, n int) string {
	s = printable(s[:min(len(s), 8*n)]) // a hostile topic is 64 KB
	if utf8.RuneCountInString(s) > n {
		s = string([]rune(s)[:n-1]) + "…"
	}
	return dash(s)
}

// tokenMember holds a device's secret. Nothing shows it.
const (
	tokenMember = "provision_token"
	redacted    = "[redacted]"
)

// redactJSON takes the secret out of JSON, however deep it is and also where JSON
// stands in a string. It is not ok for what is no JSON.
func redactJSON(src []byte) (v any, ok bool) {
	if !json.Valid(src) {
		return nil, false
	}
	d := json.NewDecoder(bytes.NewReader(src))
	d.UseNumber()
	if err := d.Decode(&v); err != nil {
		return nil, false
	}
	return redactValue(v), true
}

func redactValue(v any) any {
	switch v := v.(type) {
	case map[string]any:
		for name, member := range v {
			if strings.EqualFold(name, tokenMember) {
				v[name] = redacted
			} else {
				v[name] = redactValue(member)
			}
		}
	case []any:
		for i := range v {
			v[i] = redactValue(v[i])
		}
	case string:
		return redactText(v)
	}
	return v
}

// redactText takes the secret out of a text: member by member where it is JSON, and
// otherwise by leaving out all that follows the member's name, since nobody can
// tell where the secret ends. A text without it comes back as it is.
func redactText(s string) string {
	end, found := findToken(s)
	if !found {
		return s
	}
	if v, ok := redactJSON([]byte(s)); ok {
		return string(encode(v, ""))
	}
	return s[:end] + redacted
}

func encode(v any, indent string) []byte {
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
