package jetstream

import (
	"bytes"
	"encoding/json"
	"strconv"
	"strings"
	"unicode/utf8"
)

// maxRawBrackets is how many brackets a payload may have and still be embedded
// as it is: encoding/json, and others after it, refuse more than 10,000 levels,
// and the envelope adds one.
const maxRawBrackets = 9_000

// origin is what an MQTT topic says about a message.
type origin struct {
	tenant  string // empty: cannot be read from the topic
	device  string // empty: no device topic
	msgType string // all levels after the device, "shadow/reported"
}

// parseTopic reads tenant/{tenant}/device/{device}/{msg_type…}. Of a topic of
// another form it reads the tenant alone, where there is one.
func parseTopic(topic string) origin {
	rest, ok := strings.CutPrefix(topic, "tenant/")
	if !ok {
		return origin{}
	}
	tenant, rest, _ := strings.Cut(rest, "/")
	o := origin{tenant: tenant}
	rest, ok = strings.CutPrefix(rest, "device/")
	if !ok {
		return o
	}
	device, msgType, ok := strings.Cut(rest, "/")
	if !ok || device == "" {
		return o
	}
	o.device, o.msgType = device, msgType
	return o
}

// downlink reports whether the topic is one on which we speak to devices; a
// wildcard subscriber hears ourselves.
func (o origin) downlink() bool {
	if o.device == "" {
		return false
	}
	switch o.msgType {
	case "commands", "commands/response", "shadow/desired":
		return true
	}
	return false
}

// subject is where the envelope goes. It is false where the tenant's name
// cannot be part of a NATS subject.
func (o origin) subject() (string, bool) {
	if !subjectSafe(o.tenant) {
		return "", false
	}
	prefix := "telemetry."
	if o.device != "" {
		switch o.msgType {
		case "shadow/reported":
			prefix = "shadow."
		case "commands/ack":
			prefix = "commands."
		}
	}
	return prefix + o.tenant, true
}

// maxTenantBytes keeps the subject far below the server's max_control_line
// (4,096 bytes by default). The server closes the whole connection of a client
// that exceeds it.
const maxTenantBytes = 512

// subjectSafe reports whether a tenant's name can stand in a subject as it is:
// no wildcard, no white space, no control character, no empty token.
func subjectSafe(tenant string) bool {
	if tenant == "" || len(tenant) > maxTenantBytes || !utf8.ValidString(tenant) {
		return false
	}
	if strings.HasPrefix(tenant, ".") || strings.HasSuffix(tenant, ".") || strings.Contains(tenant, "..") {
		return false
	}
	for i := range len(tenant) {
		if c := tenant[i]; c <= ' ' || c == 0x7f || c == '*' || c == '>' {
			return false
		}
	}
	return true
}

// appendEnvelope appends the message as the contract's envelope. The payload
// goes in byte for byte where it is a JSON object, and otherwise as a string
// with its text, so that whoever reads the envelope judges the payload, not the
// mirror.
func appendEnvelope(dst []byte, topic string, o origin, username string, payload []byte, tsMillis int64) []byte {
	dst = append(dst, `{"topic":`...)
	dst = appendString(dst, topic)
	dst = append(dst, `,"tenant_id":`...)
	dst = appendString(dst, o.tenant)
	dst = append(dst, `,"device_id":`...)
	dst = appendString(dst, o.device)
	dst = append(dst, `,"msg_type":`...)
	dst = appendString(dst, o.msgType)
	dst = append(dst, `,"username":`...)
	dst = appendString(dst, username)
	dst = append(dst, `,"payload":`...)
	if embeddable(payload) {
		dst = append(dst, payload...)
	} else {
		dst = appendString(dst, payload)
	}
	dst = append(dst, `,"ts":`...)
	dst = strconv.AppendInt(dst, tsMillis, 10)
	return append(dst, '}')
}

// embeddable reports whether the payload is a JSON object that stays valid
// inside another.
func embeddable(payload []byte) bool {
	start := bytes.TrimLeft(payload, " \t\r\n")
	if len(start) == 0 || start[0] != '{' {
		return false
	}
	if len(payload) > maxRawBrackets && bytes.Count(payload, []byte{'{'})+bytes.Count(payload, []byte{'['}) > maxRawBrackets {
		return false
	}
	return utf8.Valid(payload) && json.Valid(payload)
}

const hexDigits = "0123456789abcdef"

// appendString appends s as a JSON string; what is no UTF-8 becomes U+FFFD.
func appendString[T string | []byte](dst []byte, s T) []byte {
	dst = append(dst, '"')
	clean := 0 // start of the run that needs no escaping
	for i := 0; i < len(s); {
		c := s[i]
		if c >= utf8.RuneSelf {
			size := runeSize(s[i:min(i+utf8.UTFMax, len(s))])
			if size == 0 {
				dst = append(dst, s[clean:i]...)
				dst = append(dst, "\ufffd"...)
				i++
				clean = i
				continue
			}
			i += size
			continue
		}
		if c >= ' ' && c != '"' && c != '\\' {
			i++
			continue
		}
		dst = append(dst, s[clean:i]...)
		switch c {
		case '"', '\\':
			dst = append(dst, '\\', c)
		case '\n':
			dst = append(dst, '\\', 'n')
		case '\r':
			dst = append(dst, '\\', 'r')
		case '\t':
			dst = append(dst, '\\', 't')
		default:
			dst = append(dst, '\\', 'u', '0', '0', hexDigits[c>>4], hexDigits[c&0xf])
		}
		i++
		clean = i
	}
	dst = append(dst, s[clean:]...)
	return append(dst, '"')
}

// runeSize is the length of the character at the start of s, 0 if it is none.
func runeSize[T string | []byte](s T) int {
	r, size := utf8.DecodeRuneInString(string(s))
	if r == utf8.RuneError && size <= 1 {
		return 0
	}
	return size
}
