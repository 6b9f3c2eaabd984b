package downlink

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/crossfade-io/crossfade/legacy_mqtt"
)

// TestPlan: what becomes of a row, by what it is when it is read. That sweeps take
// most of what is pointless away before is no excuse to send it.
func TestPlan(t *testing.T) {
	now := time.Date(2026, 2, 9, 9, 15, 23, 0, time.UTC)
	desired := func(state string, version int64, p *published) row {
		return row{Tenant: "t", Device: "d", Kind: Desired, State: state, Version: version, Published: p, Now: now, Changed: now}
	}
	command := func(status string, sent bool, expires time.Time) row {
		return row{Tenant: "t", Device: "d", Kind: Command, CommandID: "c", Status: status, Sent: sent, Expires: expires, Now: now, Read: now}
	}
	response := func(age time.Duration) row {
		return row{Tenant: "t", Device: "d", Kind: Response, CommandID: "c", Body: `{"a": 1}`, Created: now.Add(-age), Now: now, Read: now}
	}
	named := func(tenant, device string) row {
		r := desired(`{"a":1}`, 1, nil)
		r.Tenant, r.Device = tenant, device
		return r
	}
	const version3 = `{"desired":{"a":"<"},"version":3,"timestamp":"2026-02-09T09:15:23Z"}`
	for i, c := range []struct {
		row    row
		want   action
		body   string
		expiry time.Duration
		reason string
	}{
		{desired(`{"a": "<"}`, 3, nil), send, version3, 0, ""},
		{desired(`{"a": "<"}`, 3, &published{2, false}), send, version3, 0, ""},
		{desired(`{"a": "<"}`, 3, &published{2, true}), send, version3, 0, ""},
		{desired(`{"a": "<"}`, 3, &published{3, true}), send, version3, 0, ""},
		{desired(`{"a": "<"}`, 3, &published{3, false}), skip, "", 0, ""},
		{desired(`{"a": "<"}`, 3, &published{4, false}), tooLow, "", 0, ""},
		{desired(`{}`, 3, nil), send, "", 0, ""},
		{desired(`null`, 3, &published{2, false}), send, "", 0, ""},
		{desired(``, 0, &published{2, false}), send, "", 0, ""},
		{desired(``, 0, &published{2, true}), skip, "", 0, ""},
		{desired(`[1]`, 3, nil), park, "", 0, "no JSON object"},
		{command("queued", false, time.Time{}), send, `{"command_id":"c","type":"","params":{},"expires_at":null}`, 0, ""},
		{command("queued", false, now.Add(1500*time.Millisecond)), send, `{"command_id":"c","type":"","params":{},"expires_at":"2026-02-09T09:15:24.5Z"}`, 1500 * time.Millisecond, ""},
		{command("queued", false, now.AddDate(199, 0, 0)), send, `{"command_id":"c","type":"","params":{},"expires_at":"2225-02-09T09:15:23Z"}`, now.AddDate(199, 0, 0).Sub(now), ""},
		{command("queued", false, now), expire, "", 0, ""},
		{command("queued", true, time.Time{}), skip, "", 0, ""},
		{command("delivered", false, time.Time{}), arrived, "", 0, ""},
		{command("delivered", true, time.Time{}), skip, "", 0, ""},
		{command("", false, time.Time{}), skip, "", 0, ""},
		{response(time.Minute), send, `{"a":1}`, 59 * time.Minute, ""},
		{response(-time.Minute), send, `{"a":1}`, time.Hour, ""},
		{response(time.Hour), skip, "", 0, ""},
		{named("t", "d/shadow"), park, "", 0, "cannot be a level"},
		{named("t/device", "d"), park, "", 0, "cannot be a level"},
		{named("t", "+"), park, "", 0, "cannot be a level"},
		{named("#", "d"), park, "", 0, "cannot be a level"},
		{named("", "d"), park, "", 0, "cannot be a level"},
		{row{Tenant: "t", Device: "d", Kind: "letter"}, park, "", 0, "does not know the kind"},
	} {
		what, m, err := c.row.plan()
		var expiry time.Duration
		if !m.Deadline.IsZero() {
			expiry = m.Deadline.Sub(c.row.Read)
		}
		if what != c.want || what == send && (string(m.Payload) != c.body || expiry != c.expiry) || (err == nil) != (c.reason == "") || err != nil && !strings.Contains(err.Error(), c.reason) {
			t.Errorf("case %d: %v, %s for %s, %v", i, what, m.Payload, expiry, err)
		}
	}
}

// TestJudge: what is tried again for ever, what until it is parked, and what never.
func TestJudge(t *testing.T) {
	refused := func(code byte) error { return fmt.Errorf("x: %w", &legacy_mqtt.RefusedError{Code: code}) }
	hangs := fmt.Errorf("%w: %w", legacy_mqtt.ErrUnconfirmed, legacy_mqtt.ErrHangsUp)
	for i, c := range []struct {
		err  error
		want verdict
	}{
		{legacy_mqtt.ErrUnconfirmed, retry}, {hangs, strike}, {errors.New("too large"), strike},
		{refused(0x97), retry}, {refused(0x83), retry}, {refused(0x80), retry},
		{refused(0x87), never}, {refused(0x90), never}, {refused(0x95), never}, {refused(0x99), never}, {refused(0x9A), never}, {refused(0x9B), never},
		{refused(0x91), strike}, {refused(0xFF), strike},
	} {
		if got := judge(c.err); got != c.want {
			t.Errorf("case %d: %v", i, got)
		}
	}
}

// TestHopeless: what fails by itself is parked after some attempts; one that the broker
// hangs up on only if the broker answers to others.
func TestHopeless(t *testing.T) {
	hangs := fmt.Errorf("%w: %w", legacy_mqtt.ErrUnconfirmed, legacy_mqtt.ErrHangsUp)
	after := func(s *Sender, id int64, err error) (n int) {
		for n < 100 {
			n++
			if s.hopeless(id, err, s.answered) {
				break
			}
		}
		return n
	}
	s := &Sender{strikes: make(map[int64]strikes)}
	if n := after(s, 1, errors.New("too large")); n != patientAttempts {
		t.Errorf("too large: parked after %d attempts", n)
	}
	if n := after(s, 2, &legacy_mqtt.RefusedError{Code: 0x91}); n != patientAttempts {
		t.Errorf("refused: parked after %d attempts", n)
	}
	if n := after(s, 3, legacy_mqtt.ErrUnconfirmed); n != 100 {
		t.Errorf("unconfirmed: parked after %d attempts", n)
	}
	if n := after(s, 4, hangs); n != 100 {
		t.Errorf("a broker that hangs up on all: parked after %d attempts", n)
	}
	s.answered++
	if n := after(s, 4, hangs); n != 1 {
		t.Errorf("once another was answered: parked after %d attempts more", n)
	}
}
