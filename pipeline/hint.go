package pipeline

import (
	"encoding/json"
	"strings"
)

// TopicHint tells the topic of a delivery without decoding it, for what may err:
// who works on it. By MQTT it is the topic; of an envelope it is the first "topic"
// at its top level, or "" where that cannot be found. A hostile envelope may have
// another topic than its hint; what is believed is what [Decoder.Decode] says.
func TopicHint(d *Delivery) string {
	if d.Path == PathMQTT {
		return d.Topic
	}
	s := scanner{text: text(d.Body)}
	if !s.skip('{') {
		return ""
	}
	for {
		name, ok := s.string()
		if !ok || !s.skip(':') {
			return ""
		}
		if name == "topic" {
			topic, _ := s.string()
			return unquoted(topic)
		}
		if !s.value() || !s.skip(',') {
			return ""
		}
	}
}

// unquoted resolves the escapes in what stands between quotes.
func unquoted(s string) string {
	if strings.IndexByte(s, '\\') < 0 {
		return s
	}
	var out string
	if json.Unmarshal([]byte(`"`+s+`"`), &out) != nil {
		return ""
	}
	return out
}

// scanner steps over JSON without checking it.
type scanner struct{ text string }

func (s *scanner) space() { s.text = strings.TrimLeft(s.text, " \t\r\n") }

// skip steps over one character and the space around it.
func (s *scanner) skip(c byte) bool {
	s.space()
	if s.text == "" || s.text[0] != c {
		return false
	}
	s.text = s.text[1:]
	s.space()
	return true
}

// string steps over a string and returns what stands between its quotes.
func (s *scanner) string() (string, bool) {
	if s.text == "" || s.text[0] != '"' {
		return "", false
	}
	for i := 1; i < len(s.text); i++ {
		switch s.text[i] {
		case '\\':
			i++
		case '"':
			in := s.text[1:i]
			s.text = s.text[i+1:]
			return in, true
		}
	}
	return "", false
}

// value steps over a value, to the comma or bracket behind it.
func (s *scanner) value() bool {
	depth := 0
	for s.text != "" {
		switch s.text[0] {
		case '"':
			if _, ok := s.string(); !ok {
				return false
			}
			continue
		case '{', '[':
			depth++
		case '}', ']':
			if depth == 0 {
				return true
			}
			depth--
		case ',':
			if depth == 0 {
				return true
			}
		}
		s.text = s.text[1:]
	}
	return false
}
