package main

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
)

// TestDownlinkCommands: parked and waiting messages are listed by filters, retried and
// dropped, and nothing is touched that was not named.
func TestDownlinkCommands(tt *testing.T) {
	t := newQuarantineTest(tt) // a migrated database, chosen by DATABASE_URL
	t.exec(`INSERT INTO crossfade_downlink_parked (id, lane, tenant_id, device_id, kind, command_id, body, created_at, attempts, reason)
		SELECT n, crossfade_lane('t' || n % 2, 'd' || n), 't' || n % 2, 'd' || n, k, CASE WHEN k <> 'desired' THEN 'c' || n END, CASE WHEN k = 'response' THEN '{"a": 1}'::jsonb END, now(), n, E'not \x1b[31mauthorized'
		  FROM generate_series(1, 12) AS n, LATERAL (SELECT (ARRAY['desired', 'command', 'response'])[1 + n % 3] AS k) AS x`)
	t.exec(`INSERT INTO crossfade_downlink (lane, tenant_id, device_id, kind, attempts, next_try, last_error)
		SELECT crossfade_lane('t1', 'w' || n), 't1', 'w' || n, 'desired', n, CASE WHEN n > 0 THEN now() + interval '1 hour' END, CASE WHEN n > 0 THEN 'quota exceeded' END FROM generate_series(0, 2) AS n`)

	type answer struct {
		Messages []struct {
			ID       int64
			Tenant   string `json:"tenant_id"`
			Kind     string
			Why      string
			NextTry  *string `json:"next_try"`
			ParkedAt *string `json:"parked_at"`
		}
		More bool
	}
	list := func(args ...string) (a answer) {
		t.Helper()
		code, out, errs := call(tt, append([]string{"downlink", "list", "--output", "json"}, args...)...)
		if code != exitDone {
			t.Fatalf("list %q: exit %d: %s", args, code, errs)
		}
		if err := json.Unmarshal([]byte(out), &a); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		return a
	}
	if a := list(); len(a.Messages) != 12 || a.More || a.Messages[0].ID != 12 || a.Messages[0].ParkedAt == nil {
		t.Errorf("list: %+v", a)
	}
	if a := list("--limit", "5"); len(a.Messages) != 5 || !a.More {
		t.Errorf("list of 5: %+v", a)
	}
	if a := list("--tenant", "t1", "--kind", "command"); len(a.Messages) != 2 || a.Messages[0].Tenant != "t1" || a.Messages[0].Kind != "command" {
		t.Errorf("t1's commands: %+v", a)
	}
	if a := list("--waiting"); len(a.Messages) != 3 || a.Messages[1].Why != "quota exceeded" || a.Messages[1].NextTry == nil {
		t.Errorf("waiting: %+v", a)
	}
	code, out, _ := call(tt, "downlink", "list", "--device", "d4", "--device", "d5")
	if code != exitDone || strings.Count(out, "\n") != 3 || strings.Contains(out, "\x1b") || !strings.Contains(out, "c4") {
		t.Errorf("list as text: exit %d\n%s", code, out)
	}

	t.answer("no\n") // of the one that asks
	for _, c := range []struct {
		args []string
		exit int
		says string
	}{
		{[]string{"retry"}, exitUsage, "say which messages"},
		{[]string{"drop", "--all", "--tenant", "t1"}, exitUsage, "contradict"},
		{[]string{"list", "--kind", "letter"}, exitUsage, "--kind"},
		{[]string{"list", "--limit", "0"}, exitUsage, "--limit"},
		{[]string{"drop", "--tenant", "nobody"}, exitDone, "0 messages dropped"},
		{[]string{"retry", "1", "--id", "2"}, exitDone, "2 messages retried"},
		{[]string{"retry", "--waiting", "--all"}, exitDone, "2 messages retried"},
		{[]string{"drop", "--kind", "response"}, exitNo, "Drop 3 messages for good?"},
		{[]string{"drop", "--kind", "response", "--yes"}, exitDone, "3 messages dropped"},
		{[]string{"drop", "--device", "d3", "--yes", "--output", "json"}, exitDone, `"dropped": 1`},
	} {
		code, out, errs := call(tt, append([]string{"downlink"}, c.args...)...)
		if code != c.exit || !strings.Contains(out+errs, c.says) {
			t.Errorf("%q: exit %d, want %d with %q:\n%s%s", c.args, code, c.exit, c.says, out, errs)
		}
	}
	t.wantCount(5, `SELECT count(*) FROM crossfade_downlink`)
	t.wantCount(0, `SELECT count(*) FROM crossfade_downlink WHERE next_try IS NOT NULL OR lane <> crossfade_lane(tenant_id, device_id)`)
	t.wantCount(6, `SELECT count(*) FROM crossfade_downlink_parked`)
	if s := fmt.Sprint(list()); strings.Contains(s, "response") {
		t.Errorf("left: %s", s)
	}
}
