package api

import (
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
)

const (
	shadowPath   = "/v1/tenants/t1/devices/d1/shadow"
	desiredPath  = shadowPath + "/desired"
	commandsPath = "/v1/tenants/t1/devices/d1/commands"
)

// TestDesired: every change is a version, told as the trigger decided, and goes to
// the outbox; the same again is none.
func TestDesired(t *testing.T) {
	r := newRig(t)
	marks := func() int {
		return query[int](r, `SELECT count(*)::int FROM crossfade_downlink WHERE tenant_id = 't1' AND device_id = 'd1' AND kind = 'desired'`)
	}
	var sh Shadow
	a := r.want(200, r.as("GET", shadowPath, ""))
	a.json(t, &sh)
	if string(sh.Desired.Desired) != "{}" || sh.Version != 0 || string(sh.Reported) != "{}" || a.Header.Get("ETag") != `"0"` {
		t.Errorf("of a device without a row: %s, %v", a.body, a.Header)
	}
	for i, step := range []struct {
		method, body, want string
		version            int64
		marks              int
	}{
		{"PUT", `{"desired":{"mode":"eco","n":12345678901234567890}}`, `{"n":12345678901234567890,"mode":"eco"}`, 1, 1},
		{"PUT", ` {"desired" : {"n":12345678901234567890, "mode":"eco"}}`, `{"n":12345678901234567890,"mode":"eco"}`, 1, 1},
		{"PUT", `{"desired":{"mode":"é<&>"}}`, `{"mode":"é<&>"}`, 2, 2},
		{"DELETE", "", `{}`, 3, 3},
		{"DELETE", "", `{}`, 3, 3},
		{"PUT", `{"desired":{}}`, `{}`, 3, 3},
		{"PUT", `{"desired":{"a":1}}`, `{"a":1}`, 4, 4},
	} {
		var d Desired
		a := r.want(200, r.as(step.method, desiredPath, step.body))
		a.json(t, &d)
		if string(d.Desired) != step.want || d.Version != step.version || a.Header.Get("ETag") != etag(step.version) || marks() != step.marks {
			t.Errorf("step %d: %s, %s, %d marks; want %s, version %d, %d marks", i, a.body, a.Header.Get("ETag"), marks(), step.want, step.version, step.marks)
		}
		if row := query[string](r, `SELECT desired_version || ' ' || site_id FROM device_state WHERE tenant_id = 't1' AND device_id = 'd1'`); row != fmt.Sprintf("%d s1", step.version) {
			t.Errorf("step %d: the row says %s", i, row)
		}
	}
	// A row that is gone and comes again goes on counting.
	r.exec(`DELETE FROM device_state`)
	r.want(412, r.as("PUT", desiredPath, `{"desired":{"b":1}}`, "If-Match", `"4"`))
	if a := r.want(200, r.as("PUT", desiredPath, `{"desired":{"b":1}}`, "If-Match", `"0"`)); a.Header.Get("ETag") != `"5"` {
		t.Errorf("a row that came again has version %s", a.Header.Get("ETag"))
	}
	r.exec(`UPDATE device_state SET reported_state = '{"x":1}', reported_version = 7, last_seen_at = 'infinity'`)
	r.want(200, r.as("GET", shadowPath, "")).json(t, &sh)
	if string(sh.Reported) != `{"x":1}` || sh.ReportedVersion != 7 || sh.Seen != nil || sh.Updated == nil {
		t.Errorf("shadow: %+v", sh)
	}
}

// TestDesiredOnCondition: If-Match names the versions that will do.
func TestDesiredOnCondition(t *testing.T) {
	r := newRig(t)
	version := int64(0)
	for i, c := range []struct {
		match  string
		status int
	}{
		{`"1"`, 412}, {`W/"0"`, 412}, {`"00"`, 412}, {`"x"`, 412}, {`"0"`, 200}, {`"0"`, 412}, {`"1"`, 200}, {`*`, 200},
		{`"9", "3"`, 200}, {`"9","8"`, 412}, {`"0","4"`, 200}, {`5`, 400}, {`"5`, 400}, {`,`, 400}, {`"5" "6"`, 400}, {``, 200},
	} {
		a := r.want(c.status, r.as("PUT", desiredPath, fmt.Sprintf(`{"desired":{"i":%d}}`, i), "If-Match", c.match))
		switch c.status {
		case 200:
			version++
		case 400:
			continue
		}
		if got := a.Header.Get("ETag"); got != etag(version) {
			t.Errorf("If-Match %s: ETag %s, want %s\n%s", c.match, got, etag(version), a.body)
		}
	}
	r.want(412, r.as("DELETE", desiredPath, "", "If-Match", `"1"`))
	r.want(200, r.as("DELETE", desiredPath, "", "If-Match", etag(version)))
}

// TestTwoWriters expect the same version: one wins, whether the row is there or not.
func TestTwoWriters(t *testing.T) {
	r := newRig(t)
	for round := range 30 {
		const writers = 6
		answers := make([]answer, writers)
		var wg sync.WaitGroup
		for w := range writers {
			wg.Go(func() {
				a, err := r.send("PUT", desiredPath, strings.NewReader(fmt.Sprintf(`{"desired":{"round":%d,"writer":%d}}`, round, w)),
					"Authorization", "Bearer "+r.token, "If-Match", etag(int64(round)))
				if err != nil {
					t.Error(err)
				}
				answers[w] = a
			})
		}
		wg.Wait()
		won := 0
		for _, a := range answers {
			switch {
			case a.StatusCode == 200 && a.Header.Get("ETag") == etag(int64(round+1)):
				won++
			case a.StatusCode != 412:
				t.Errorf("round %d: %d %s", round, a.StatusCode, a.body)
			}
		}
		if won != 1 {
			t.Fatalf("round %d: %d writers have won", round, won)
		}
	}
}

// TestUnknownDevice is 404 for every operation, and nothing is written.
func TestUnknownDevice(t *testing.T) {
	r := newRig(t)
	for _, name := range []string{"nobody", "a%2Fb", "%00", "%ff%fe", "d1%20", "$crossfade", strings.Repeat("x", 600)} {
		base := "/v1/tenants/t1/devices/" + name
		r.want(404, r.as("PUT", base+"/shadow/desired", `{"desired":{"a":1}}`))
		r.want(404, r.as("PUT", base+"/shadow/desired", `{"desired":{"a":1}}`, "If-Match", `"0"`))
		r.want(404, r.as("DELETE", base+"/shadow/desired", ""))
		r.want(404, r.as("GET", base+"/shadow", ""))
		r.want(404, r.as("POST", base+"/commands", `{"type":"reboot"}`))
		r.want(404, r.as("GET", base+"/commands", ""))
		r.want(404, r.as("GET", base+"/commands/c1", ""))
	}
	if n := query[int](r, `SELECT (SELECT count(*) FROM device_state)::int + (SELECT count(*) FROM device_commands)::int`); n != 0 {
		t.Errorf("%d rows were written", n)
	}
}

// TestCommands: queued once for each ID, and on the way to the device.
func TestCommands(t *testing.T) {
	r := newRig(t)
	var c Command
	a := r.want(201, r.as("POST", commandsPath, `{"type":"reboot"}`))
	a.json(t, &c)
	if c.Status != "queued" || c.Type != "reboot" || string(c.Params) != "{}" || c.ExpiresAt != nil || c.CreatedBy != "api:backend" || len(c.ID) != 36 || c.Device != "d1" {
		t.Errorf("a new command: %s", a.body)
	}
	if at := a.Header.Get("Location"); at != commandsPath+"/"+c.ID {
		t.Errorf("Location %s", at)
	}
	var again Command
	r.want(200, r.as("GET", a.Header.Get("Location"), "")).json(t, &again)
	if again.ID != c.ID || !again.CreatedAt.Equal(*c.CreatedAt) {
		t.Errorf("read again: %+v, want %+v", again, c)
	}
	if n := query[int](r, `SELECT count(*)::int FROM crossfade_downlink WHERE kind = 'command' AND command_id = $1`, c.ID); n != 1 {
		t.Errorf("%d rows in the outbox", n)
	}
	full := `{"command_id":"fw-1","type":"update","params":{"v":2,"url":"https://x"},"ttl_seconds":600}`
	for _, step := range []struct {
		body   string
		status int
	}{
		{full, 201}, {full, 200}, {`{"command_id":"fw-1","type":"update","params":{"url":"https://x","v":2.0},"ttl_seconds":600}`, 200},
		{strings.Replace(full, "600", "601", 1), 409}, {strings.Replace(full, `"v":2`, `"v":3`, 1), 409}, {strings.Replace(full, `"update"`, `"up"`, 1), 409},
		{strings.Replace(full, `,"ttl_seconds":600`, ``, 1), 409},
		{`{"command_id":"at-1","type":"x","expires_at":"2999-01-01T00:00:00.123456789Z"}`, 201},
		{`{"command_id":"at-1","type":"x","expires_at":"2999-01-01T02:00:00.123456+02:00"}`, 200},
		{`{"command_id":"at-1","type":"x","expires_at":"2999-01-01T00:00:01Z"}`, 409},
		{`{"command_id":"at-1","type":"x","ttl_seconds":60}`, 409},
		{`{"command_id":"for-ever","type":"x"}`, 201}, {`{"command_id":"for-ever","type":"x","params":null}`, 200},
	} {
		r.want(step.status, r.as("POST", commandsPath, step.body))
	}
	if ttl := query[float64](r, `SELECT extract(epoch FROM expires_at - created_at)::float8 FROM device_commands WHERE command_id = 'fw-1'`); ttl != 600 {
		t.Errorf("it expires after %v seconds", ttl)
	}
	// The same ID for another device of the tenant is taken; another tenant's is not.
	r.want(409, r.as("POST", "/v1/tenants/t1/devices/d2/commands", full))
	other := r.newToken(NewToken{Name: "other", Tenant: "t2", Scopes: []string{ScopeCommands}})
	r.want(201, r.call("POST", "/v1/tenants/t2/devices/d1/commands", full, "Authorization", "Bearer "+other))
	r.want(404, r.as("GET", "/v1/tenants/t1/devices/d2/commands/fw-1", ""))
	// What has expired, or been acknowledged, meanwhile is still the same command.
	r.exec(`UPDATE device_commands SET expires_at = created_at - interval '1 day', status = 'expired' WHERE command_id = 'at-1'`)
	past := query[string](r, `SELECT to_char(expires_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') FROM device_commands WHERE command_id = 'at-1'`)
	r.want(200, r.as("POST", commandsPath, fmt.Sprintf(`{"command_id":"at-1","type":"x","expires_at":%q}`, past)))
	r.want(422, r.as("POST", commandsPath, fmt.Sprintf(`{"command_id":"at-2","type":"x","expires_at":%q}`, past)))
	if n := query[int](r, `SELECT count(*)::int FROM crossfade_downlink WHERE tenant_id = 't1' AND kind = 'command'`); n != 4 {
		t.Errorf("%d commands in the outbox, want 4", n)
	}
}

// TestCommandsAtOnce: of many requests with one ID one makes the command.
func TestCommandsAtOnce(t *testing.T) {
	r := newRig(t)
	codes := make([]int, 12)
	var wg sync.WaitGroup
	for i := range codes {
		wg.Go(func() {
			a, err := r.send("POST", commandsPath, strings.NewReader(fmt.Sprintf(`{"command_id":"one","type":"x%d"}`, i%2)), "Authorization", "Bearer "+r.token)
			if err != nil {
				t.Error(err)
			}
			codes[i] = a.StatusCode
		})
	}
	wg.Wait()
	count := map[int]int{}
	for _, c := range codes {
		count[c]++
	}
	if count[201] != 1 || count[200] != 5 || count[409] != 6 {
		t.Errorf("statuses: %v", count)
	}
}

func TestListCommands(t *testing.T) {
	r := newRig(t)
	r.exec(`INSERT INTO device_commands (tenant_id, command_id, device_id, command_type, command_params, status, created_at, expires_at, ack_details)
	 SELECT 't1', 'c' || n, CASE WHEN n % 10 = 9 THEN 'd2' ELSE 'd1' END, 'x', '{"n":1}', CASE WHEN n % 2 = 0 THEN 'queued' ELSE 'delivered' END, now() + n * interval '1 second', 'infinity', '{"ok":true}'
	   FROM generate_series(0, 99) AS n`)
	ids := func(path string) string {
		var out struct{ Commands []Command }
		r.want(200, r.as("GET", path, "")).json(t, &out)
		var list []string
		for _, c := range out.Commands {
			if c.Device != "d1" || c.ExpiresAt != nil || string(*c.AckDetails) != `{"ok":true}` {
				t.Errorf("%+v", c)
			}
			list = append(list, c.ID)
		}
		return strings.Join(list, " ")
	}
	if got := ids(commandsPath + "?limit=4"); got != "c98 c97 c96 c95" {
		t.Errorf("the newest: %s", got)
	}
	if got := ids(commandsPath + "?limit=3&status=delivered"); got != "c97 c95 c93" {
		t.Errorf("the newest delivered: %s", got)
	}
	if got := strings.Count(ids(commandsPath), " "); got != 49 {
		t.Errorf("%d by default", got+1)
	}
	for _, query := range []string{"limit=0", "limit=101", "limit=x", "status=new", "status=queued&offset=3", "limt=5"} {
		r.want(422, r.as("GET", commandsPath+"?"+query, ""))
	}
	if a := r.want(200, r.as("GET", "/v1/tenants/t1/devices/gone/commands", "")); strings.TrimSpace(a.body) != `{"commands":[]}` {
		t.Errorf("of a device without commands: %s", a.body)
	}
}

// TestHostileBodies are refused with a reason and change nothing.
func TestHostileBodies(t *testing.T) {
	r := newRig(t)
	desired := func(s string) string { return `{"desired":` + s + `}` }
	for name, c := range map[string]struct {
		status int
		body   string
	}{
		"empty":                 {400, ""},
		"no JSON":               {400, "desired=1"},
		"two values":            {400, `{"desired":{}} {}`},
		"a comment":             {400, `{"desired":{}/**/}`},
		"invalid UTF-8":         {400, desired("{\"a\":\"\xff\"}")},
		"an array":              {422, `[]`},
		"null":                  {422, `null`},
		"nothing in it":         {422, `{}`},
		"desired null":          {422, desired(`null`)},
		"desired an array":      {422, desired(`[1]`)},
		"another case":          {422, `{"Desired":{}}`},
		"both cases":            {422, `{"desired":{},"DESIRED":{}}`},
		"twice":                 {422, `{"desired":{"a":1},"desired":{"a":2}}`},
		"unknown members":       {422, `{"desired":{},"version":3}`},
		"U+0000":                {422, desired(`{"a":"\u0000"}`)},
		"U+0000 in a name":      {422, desired(`{"\u0000":1}`)},
		"half a surrogate pair": {422, desired(`{"a":"\ud800"}`)},
		"a number out of range": {422, desired(`{"a":1e400000}`)},
		"deep":                  {422, desired(strings.Repeat(`{"a":`, 64) + "1" + strings.Repeat("}", 64))},
		"very deep":             {400, desired(strings.Repeat(`[`, 30000) + strings.Repeat("]", 30000))},
		"too long":              {413, desired(`{"a":"` + strings.Repeat("x", MaxBody) + `"}`)},
		"one byte too long":     {413, `{"desired":{"a":"` + strings.Repeat("x", MaxBody-19) + `"}}`},
		"numbers that grow":     {413, desired(`{"a":[` + strings.Repeat(`1e300,`, 8000) + `1]}`)},
	} {
		t.Run(name, func(t *testing.T) {
			sub := *r
			sub.T = t
			sub.want(c.status, sub.as("PUT", desiredPath, c.body))
		})
	}
	if n := query[int](r, `SELECT count(*)::int FROM device_state`); n != 0 {
		t.Errorf("%d rows were written", n)
	}
	r.want(200, r.as("PUT", desiredPath, `{"desired":{"a":"`+strings.Repeat("x", MaxBody-20)+`"}}`))
	r.want(200, r.as("PUT", desiredPath, desired(strings.Repeat(`{"a":`, 62)+"1"+strings.Repeat("}", 62))))
	r.want(413, r.as("PUT", desiredPath, strings.Repeat("x", MaxBatch+10)))
	for _, headers := range [][]string{{"Content-Type", "text/plain"}, {"Content-Type", "application/xml"}, {"Content-Type", "application/json/x"}, {"Content-Encoding", "gzip"}} {
		r.want(415, r.as("PUT", desiredPath, `{"desired":{}}`, headers...))
	}
	r.want(200, r.as("PUT", desiredPath, `{"desired":{}}`, "Content-Type", "application/json; charset=utf-8"))
	for _, body := range []string{
		`{}`, `{"type":""}`, `{"type":5}`, `{"type":"a\nb"}`, `{"type":"` + strings.Repeat("x", 129) + `"}`, `{"type":"x","params":[]}`, `{"type":"x","params":"{}"}`,
		`{"type":"x","command_id":""}`, `{"type":"x","command_id":"a/b"}`, `{"type":"x","command_id":".."}`, `{"type":"x","command_id":"a\u0000"}`, `{"type":"x","command_id":7}`,
		`{"type":"x","command_id":"` + strings.Repeat("x", 129) + `"}`, `{"type":"x","ttl_seconds":0}`, `{"type":"x","ttl_seconds":1.5}`, `{"type":"x","ttl_seconds":"60"}`,
		`{"type":"x","ttl_seconds":1e300}`, `{"type":"x","ttl_seconds":-1}`, `{"type":"x","expires_at":"tomorrow"}`, `{"type":"x","expires_at":1760000000}`,
		`{"type":"x","expires_at":"2020-01-01T00:00:00Z"}`, `{"type":"x","expires_at":"2999-01-01"}`, `{"type":"x","expires_at":"2999-01-01T00:00:00Z","ttl_seconds":5}`,
		`{"type":"x","status":"delivered"}`, `{"type":"x","params":{"a":"\u0000"}}`,
	} {
		r.want(422, r.as("POST", commandsPath, body))
	}
	if n := query[int](r, `SELECT count(*)::int FROM device_commands`); n != 0 {
		t.Errorf("%d commands were made", n)
	}
}

// TestPaths that are none are answered as problems too.
func TestPaths(t *testing.T) {
	r := newRig(t)
	for _, path := range []string{"/", "/v1", "/v1/tenants/t1", "/docs", "/schemas/Shadow.json", "/v1/tenants/t1/devices/d1/shadow/", "/v1/tenants/t1/../t2/devices/d1/shadow",
		"/v1/tenants/%2e%2e/devices/d1/shadow", "//v1/tenants/t1/devices/d1/shadow", "/device/v1"} {
		r.want(404, r.as("GET", path, ""))
	}
	a := r.want(405, r.as("PATCH", desiredPath, "{}"))
	if allow := a.Header.Get("Allow"); !strings.Contains(allow, http.MethodPut) {
		t.Errorf("Allow: %q", allow)
	}
	r.want(200, r.as("HEAD", shadowPath, ""))
	if got := r.want(200, r.as("GET", shadowPath, "", "X-Request-ID", "mine-1")).Header.Get("X-Request-ID"); got != "mine-1" {
		t.Errorf("X-Request-ID %q", got)
	}
	if got := r.want(200, r.as("GET", shadowPath, "", "X-Request-ID", "a b;c")).Header.Get("X-Request-ID"); got == "" || strings.Contains(got, " ") {
		t.Errorf("X-Request-ID %q", got)
	}
}
