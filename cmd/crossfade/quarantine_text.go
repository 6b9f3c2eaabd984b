package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
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
