package downlink

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/crossfade-io/crossfade/legacy_mqtt"
)

// Kind is what a row is about.
type Kind string

// The kinds of rows, as crossfade_downlink has them.
const (
	Desired  Kind = "desired"
	Command  Kind = "command"
	Response Kind = "response"
)

// responseExpiry is for how long an answer to an ack is worth anything.
const responseExpiry = time.Hour

// row is the first row of a device in its lane, with all that is needed to send it.
type row struct {
	ID             int64
	Lane           int16
	Tenant, Device string
	Kind           Kind
	CommandID      string
	Attempts       int
	Created        time.Time
	// Now is the database's time when the row was read: times are compared by one clock.
	Now time.Time

	// Of a desired state: every mark that it stands for, the state as JSON ("" where
	// there is none), its version (0 for a row that is gone), and what the broker has
	// confirmed last.
	Marks     []int64
	Changed   time.Time // when the last mark was written
	State     string
	Version   int64
	Published *published

	// Of a command: "" where the row is gone.
	Status string
	Type   string
	Params string
	Sent   bool
	// Expires is the zero Time for never.
	Expires time.Time

	Body string // of a response
}

type published struct {
	Version int64
	Cleared bool
}

// action is what a row comes to.
type action int

const (
	send    action = iota
	skip           // there is nothing to send any more
	expire         // the same, and the command has expired
	arrived        // the same, and the device's ack proves that the command was sent
	park           // it can never be sent as it is
)

// errNever explains why a row is parked.
type errNever struct{ reason string }

func (e errNever) Error() string { return e.reason }

// plan decides what becomes of a row, and makes the message where it is to be sent.
func (r *row) plan() (action, legacy_mqtt.Message, error) {
	m := legacy_mqtt.Message{ContentType: "application/json"}
	for _, name := range []string{r.Tenant, r.Device} {
		if name == "" || strings.ContainsAny(name, "/+#\x00") {
			return park, m, errNever{fmt.Sprintf("%.100q cannot be a level of an MQTT topic; rename it", name)}
		}
	}
	m.Topic = "tenant/" + r.Tenant + "/device/" + r.Device + "/"
	var what action
	var err error
	switch r.Kind {
	case Desired:
		what, err = r.planDesired(&m)
	case Command:
		what, err = r.planCommand(&m)
	case Response:
		what, err = r.planResponse(&m)
	default: // a later release's; it is the next one's to send
		what, err = park, errNever{fmt.Sprintf("this release does not know the kind %q", r.Kind)}
	}
	return what, m, err
}

func (r *row) planDesired(m *legacy_mqtt.Message) (action, error) {
	m.Topic += "shadow/desired"
	m.Retain = true
	if r.cleared() {
		m.ContentType = ""
		if r.Published != nil && r.Published.Cleared {
			return skip, nil
		}
		return send, nil
	}
	if !strings.HasPrefix(r.State, "{") {
		return park, errNever{"desired_state is no JSON object; write one"}
	}
	if p := r.Published; p != nil {
		switch {
		case r.Version == p.Version && !p.Cleared:
			return skip, nil
		case r.Version < p.Version:
			return park, errNever{fmt.Sprintf("desired_version is %d and %d was published before; raise it", r.Version, p.Version)}
		}
	}
	var err error
	m.Payload, err = encode(struct {
		Desired   json.RawMessage `json:"desired"`
		Version   int64           `json:"version"`
		Timestamp time.Time       `json:"timestamp"`
	}{json.RawMessage(r.State), r.Version, r.Changed.UTC()})
	return send, err
}

// cleared: the retained message is to go.
func (r *row) cleared() bool { return r.State == "" || r.State == "{}" || r.State == "null" }

func (r *row) planCommand(m *legacy_mqtt.Message) (action, error) {
	m.Topic += "commands"
	m.CorrelationData = []byte(r.CommandID)
	switch {
	case r.Status == "delivered" && !r.Sent: // the ack was faster than the broker's confirmation, or than us
		return arrived, nil
	case r.Status != "queued" || r.Sent:
		return skip, nil
	}
	body := struct {
		CommandID string          `json:"command_id"`
		Type      string          `json:"type"`
		Params    json.RawMessage `json:"params"`
		ExpiresAt *time.Time      `json:"expires_at"`
	}{CommandID: r.CommandID, Type: r.Type, Params: json.RawMessage("{}")}
	if r.Params != "" {
		body.Params = json.RawMessage(r.Params)
	}
	if !r.Expires.IsZero() {
		left := r.Expires.Sub(r.Now)
		if left <= 0 {
			return expire, nil
		}
		at := r.Expires.UTC()
		m.Expiry, body.ExpiresAt = min(left, maxExpiry), &at
	}
	var err error
	m.Payload, err = encode(body)
	return send, err
}

// maxExpiry is the longest that a broker can be told, but for a second.
const maxExpiry = (1<<32 - 2) * time.Second

func (r *row) planResponse(m *legacy_mqtt.Message) (action, error) {
	m.Topic += "commands/response"
	m.CorrelationData = []byte(r.CommandID)
	m.Expiry = responseExpiry - r.Now.Sub(r.Created)
	if m.Expiry <= 0 {
		return skip, nil
	}
	m.Expiry = min(m.Expiry, responseExpiry)
	var err error
	m.Payload, err = encode(json.RawMessage(r.Body))
	return send, err
}

// encode writes compact JSON and leaves <, > and & as they are.
func encode(v any) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return nil, errNever{"it cannot be written as JSON: " + err.Error()}
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), nil
}

// Reason codes of MQTT 5, section 3.4.2.1, with which the same message will always be
// refused, until somebody has changed something.
const (
	notAuthorized        = 0x87
	topicInvalid         = 0x90
	payloadFormatInvalid = 0x99
)

// patientAttempts is how often a row is tried that the publisher does not even send (it
// is larger than the broker takes, say) before it is parked.
const patientAttempts = 5

// judge tells what an attempt to publish comes to: nil for good, errNever for a row
// that is to be parked, and anything else to be tried again.
func judge(err error, attempts int) error {
	if err == nil || errors.Is(err, legacy_mqtt.ErrUnconfirmed) {
		return err
	}
	var refused *legacy_mqtt.RefusedError
	if errors.As(err, &refused) {
		switch refused.Code {
		case notAuthorized, topicInvalid, payloadFormatInvalid:
			return errNever{err.Error()}
		}
		return err // the broker is full, or does not say
	}
	if attempts+1 < patientAttempts {
		return err
	}
	return errNever{err.Error()}
}
