package route

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"unicode"

	"github.com/crossfade-io/crossfade/pipeline"
	"github.com/crossfade-io/crossfade/pipeline/canonical"
)

// The destinations that there are.
const (
	DestinationWebhook       = "webhook"
	DestinationMQTTRepublish = "mqtt_republish"
	// DestinationPostgreSQL asks for the row that is written in any case: nothing is
	// published for it.
	DestinationPostgreSQL = "postgresql"
)

// Row is a row of message_routes as the table has it.
type Row struct {
	// ID is the key as text; NumericID tells that the column is of an integer type,
	// and that consumers expect a number.
	ID        string
	NumericID bool

	Tenant, TopicFilter, DestinationType string
	DestinationConfig, PayloadFilter     string // JSON; empty for NULL
}

// Route is a row, ready to be asked. It is not changed any more and may be shared.
type Route struct {
	ID, Tenant      string
	DestinationType string

	topicFilter string
	payload     payloadFilter
	head        []byte // the body up to the topic
}

// Compile reads a row. The error says which column it is that can't be read, and
// why; such a row routes nothing.
func Compile(r Row) (*Route, error) {
	switch {
	case r.ID == "":
		return nil, errors.New("id is empty; repeats of a message are told by it")
	case strings.TrimSpace(r.ID) != r.ID || strings.ContainsFunc(r.ID, unicode.IsControl):
		// As part of a header it would become another's ID.
		return nil, fmt.Errorf("id %q begins or ends with white space or holds a control character; repeats of a message are told by it", abridged(r.ID))
	}
	switch r.DestinationType {
	case DestinationWebhook, DestinationMQTTRepublish, DestinationPostgreSQL:
	default:
		return nil, fmt.Errorf("destination_type %q is unknown; use %s, %s or %s", r.DestinationType,
			DestinationWebhook, DestinationMQTTRepublish, DestinationPostgreSQL)
	}
	if err := checkTopicFilter(r.TopicFilter); err != nil {
		return nil, fmt.Errorf("topic_filter %q: %w", abridged(r.TopicFilter), err)
	}
	filter, err := parsePayloadFilter(r.PayloadFilter)
	if err != nil {
		return nil, fmt.Errorf("payload_filter: %w", err)
	}
	head, err := r.head()
	if err != nil {
		return nil, err
	}
	return &Route{r.ID, r.Tenant, r.DestinationType, r.TopicFilter, filter, head}, nil
}

// head is the beginning of every body, which no message changes. The JSON columns
// keep their numbers as they are written.
func (r *Row) head() ([]byte, error) {
	id := json.RawMessage(r.ID)
	if !r.NumericID {
		id = appendString(nil, r.ID)
	}
	config, err := column("destination_config", r.DestinationConfig, "{}")
	if err != nil {
		return nil, err
	}
	filter, err := column("payload_filter", r.PayloadFilter, "null")
	if err != nil {
		return nil, err
	}
	b := append([]byte(`{"route":{"id":`), id...)
	b = appendString(append(b, `,"topic_filter":`...), r.TopicFilter)
	b = appendString(append(b, `,"destination_type":`...), r.DestinationType)
	b = append(append(b, `,"destination_config":`...), config...)
	b = append(append(b, `,"payload_filter":`...), filter...)
	b = append(b, `},"topic":`...)
	if end := append(bytes.Clone(b), `""}`...); !json.Valid(end) {
		return nil, fmt.Errorf("id %q is not a number, though its column is one", abridged(r.ID))
	}
	return b, nil
}

func column(name, text, null string) ([]byte, error) {
	if text == "" {
		return []byte(null), nil
	}
	var doc canonical.Doc // stricter than encoding/json: bytes that are no UTF-8
	if err := doc.Parse([]byte(text)); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	var b bytes.Buffer
	if err := json.Compact(&b, []byte(text)); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return b.Bytes(), nil
}

// abridged keeps a text of any length from filling a log.
func abridged(s string) string {
	const limit = 128
	if len(s) <= limit {
		return s
	}
	return s[:limit] + "…"
}

// Match reports whether the message takes the route. It may be called from several
// goroutines for different messages.
func (r *Route) Match(m *pipeline.Message) bool {
	return matchTopic(r.topicFilter, m.RawTopic) && r.payload.match(m)
}

// Published reports whether what takes the route is published. The body of a route
// that is not has no reader.
func (r *Route) Published() bool { return r.DestinationType != DestinationPostgreSQL }

// Size is how many bytes of a body do not depend on the message, the tenant's name aside.
func (r *Route) Size() int { return len(r.head) }

// AppendBody appends what is published on routes.{tenant} for a message of that
// topic and payload; payload is canonical JSON (see [pipeline.Message.AppendPayload]).
func (r *Route) AppendBody(dst []byte, topic string, payload []byte) []byte {
	dst = append(dst, r.head...)
	dst = appendString(dst, topic)
	dst = append(append(dst, `,"payload":`...), payload...)
	dst = appendString(append(dst, `,"tenant_id":`...), r.Tenant)
	return append(dst, '}')
}

// appendString appends valid UTF-8 as a JSON string.
func appendString(dst []byte, s string) []byte {
	const hex = "0123456789abcdef"
	dst = append(dst, '"')
	for i := range len(s) {
		switch c := s[i]; {
		case c == '"' || c == '\\':
			dst = append(dst, '\\', c)
		case c < ' ':
			dst = append(dst, '\\', 'u', '0', '0', hex[c>>4], hex[c&15])
		default:
			dst = append(dst, c)
		}
	}
	return append(dst, '"')
}

// Problem is a row that cannot be read.
type Problem struct {
	Tenant, ID string
	Err        error
}

// Error names the route, what is wrong with it, and what follows from that.
func (p Problem) Error() string {
	return fmt.Sprintf("route %s of tenant %s routes nothing until it is mended: %v", p.ID, p.Tenant, p.Err)
}

// Unwrap returns what is wrong.
func (p Problem) Unwrap() error { return p.Err }
