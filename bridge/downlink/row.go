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
	// Read is this instance's, of the same moment or earlier.
	Read time.Time

	// Of a desired state: every mark that it stands for, the state as JSON ("" where
	// there is none), its version (0 for a row that is gone), and what the broker has
	// confirmed last.
	Marks     []int64
	Changed   time.Time // when the last mark was written
	State     string
	Version   int64
	Published *published
	Gone      int64 // the last version of a row that was deleted; 0 for none

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
	tooLow         // its version is to be raised first
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
	p := r.Published
	switch {
	case r.Version <= r.Gone, p != nil && r.Version < p.Version:
		return tooLow, nil
	case p != nil && r.Version == p.Version && !p.Cleared:
		return skip, nil
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
		m.Deadline, body.ExpiresAt = r.Read.Add(left), &at
	}
	var err error
	m.Payload, err = encode(body)
	return send, err
}

func (r *row) planResponse(m *legacy_mqtt.Message) (action, error) {
	m.Topic += "commands/response"
	m.CorrelationData = []byte(r.CommandID)
	left := responseExpiry - r.Now.Sub(r.Created)
	if left <= 0 {
		return skip, nil
	}
	m.Deadline = r.Read.Add(min(left, responseExpiry))
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

// patientAttempts is how often a row is tried that fails by itself (the publisher does
// not even send it, the broker refuses it for a reason that may pass, or hangs up on it)
// before it is parked.
const patientAttempts = 5

// strikes is how often a row has failed by itself, as far as this Sender knows: another
// that takes its lane over begins anew.
type strikes struct {
	n     int
	hangs bool // the last time the broker has hung up on it
	// since is how many messages the broker had answered before the first.
	since uint64
}

// Reason codes of MQTT 5, section 3.4.2.1.
const (
	// With these the broker is full, or does not say why: it is asked until it is not.
	unspecified    = 0x80
	implementation = 0x83
	quotaExceeded  = 0x97
	// With these the same message will always be refused, until somebody has changed
	// something.
	notAuthorized        = 0x87
	topicInvalid         = 0x90
	packetTooLarge       = 0x95
	payloadFormatInvalid = 0x99
	retainNotSupported   = 0x9A
	qosNotSupported      = 0x9B
)

// verdict is what a failed attempt comes to.
type verdict int

const (
	retry  verdict = iota // whatever happens, it is tried again
	strike                // so it is, until it is parked
	never                 // it is parked
)

func judge(err error) verdict {
	var refused *legacy_mqtt.RefusedError
	switch {
	case errors.Is(err, legacy_mqtt.ErrHangsUp):
		return strike
	case errors.Is(err, legacy_mqtt.ErrUnconfirmed):
		return retry
	case !errors.As(err, &refused):
		return strike
	}
	switch refused.Code {
	case unspecified, implementation, quotaExceeded:
		return retry
	case notAuthorized, topicInvalid, packetTooLarge, payloadFormatInvalid, retainNotSupported, qosNotSupported:
		return never
	}
	return strike
}
