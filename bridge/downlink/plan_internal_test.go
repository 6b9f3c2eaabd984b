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
		return row{Tenant: "t", Device: "d", Kind: Command, CommandID: "c", Status: status, Sent: sent, Expires: expires, Now: now}
	}
	response := func(age time.Duration) row {
		return row{Tenant: "t", Device: "d", Kind: Response, CommandID: "c", Body: `{"a": 1}`, Created: now.Add(-age), Now: now}
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
		{desired(`{"a": "<"}`, 3, &published{4, false}), park, "", 0, "4 was published before"},
		{desired(`{}`, 3, nil), send, "", 0, ""},
		{desired(`null`, 3, &published{2, false}), send, "", 0, ""},
		{desired(``, 0, &published{2, false}), send, "", 0, ""},
		{desired(``, 0, &published{2, true}), skip, "", 0, ""},
		{desired(`[1]`, 3, nil), park, "", 0, "no JSON object"},
		{command("queued", false, time.Time{}), send, `{"command_id":"c","type":"","params":{},"expires_at":null}`, 0, ""},
		{command("queued", false, now.Add(1500*time.Millisecond)), send, `{"command_id":"c","type":"","params":{},"expires_at":"2026-02-09T09:15:24.5Z"}`, 1500 * time.Millisecond, ""},
		{command("queued", false, now.AddDate(199, 0, 0)), send, `{"command_id":"c","type":"","params":{},"expires_at":"2225-02-09T09:15:23Z"}`, maxExpiry, ""},
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
		if what != c.want || what == send && (string(m.Payload) != c.body || m.Expiry != c.expiry) || (err == nil) != (c.reason == "") || err != nil && !strings.Contains(err.Error(), c.reason) {
			t.Errorf("case %d: %v, %s for %s, %v", i, what, m.Payload, m.Expiry, err)
		}
	}
}

// TestJudge: what is tried again, and what never.
func TestJudge(t *testing.T) {
	refused := func(code byte) error { return fmt.Errorf("x: %w", &legacy_mqtt.RefusedError{Code: code}) }
	for i, c := range []struct {
		err      error
		attempts int
		never    bool
	}{
		{legacy_mqtt.ErrUnconfirmed, 100, false},
		{refused(0x97), 100, false}, {refused(0x83), 100, false}, {refused(0x80), 100, false}, {refused(0x9A), 100, false},
		{refused(0x87), 0, true}, {refused(0x90), 0, true}, {refused(0x99), 0, true},
		{errors.New("too large"), 0, false}, {errors.New("too large"), 4, true},
	} {
		if _, never := errors.AsType[errNever](judge(c.err, c.attempts)); never != c.never {
			t.Errorf("case %d: %v", i, never)
		}
	}
	if judge(nil, 9) != nil {
		t.Error("a success is none")
	}
}
