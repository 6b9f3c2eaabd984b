package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/crossfade-io/crossfade/internal/devstack"
	"github.com/crossfade-io/crossfade/internal/redact"
	"github.com/crossfade-io/crossfade/pipeline"
)

// quarantineTest is a migrated database, chosen by DATABASE_URL, where no token is
// required.
type quarantineTest struct {
	*testing.T
	pool *pgxpool.Pool
}

func newQuarantineTest(t *testing.T) quarantineTest {
	t.Helper()
	url := devstack.TestOwnedDatabase(t)
	t.Setenv("DATABASE_URL", url)
	t.Setenv("CROSSFADE_PIPELINE_REQUIRE_TOKEN", "false")
	if code, out, errs := call(t, "migrate"); code != exitDone {
		t.Fatalf("migrate: exit %d\n%s%s", code, out, errs)
	}
	pool, err := pgxpool.New(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	return quarantineTest{t, pool}
}

func (t quarantineTest) exec(sql string, args ...any) {
	t.Helper()
	if _, err := t.pool.Exec(t.Context(), sql, args...); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

func (t quarantineTest) count(sql string, args ...any) (n int) {
	t.Helper()
	if err := t.pool.QueryRow(t.Context(), sql, args...).Scan(&n); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return n
}

func (t quarantineTest) wantCount(want int, sql string, args ...any) {
	t.Helper()
	if got := t.count(sql, args...); got != want {
		t.Errorf("%s is %d, want %d", sql, got, want)
	}
}

// fill makes n rows with IDs from 1, of MQTT messages that the ledger knows: for
// tenants t0 and t1, devices d0 to d4, a minute apart up to now.
func (t quarantineTest) fill(n int) {
	t.Helper()
	t.exec(`
WITH made AS (
    INSERT INTO quarantine_events (id, ingested_at, event_ts, topic, tenant_id, device_id, site_id, msg_type, reason, path, message_id, raw, detail)
    OVERRIDING SYSTEM VALUE
    SELECT n, now() - ($1 - n) * interval '1 minute', now(), format('tenant/t%s/device/d%s/telemetry', n % 2, n % 5), 't' || n % 2, 'd' || n % 5, 's1', 'telemetry',
           CASE WHEN n % 10 = 0 THEN 'TOKEN_INVALID' ELSE 'UNREGISTERED_DEVICE' END, 1,
           md5(n::text)::uuid, convert_to(format('{"seq":%s,"site_id":"s1","provision_token":"hunter2","metrics":{"a":%s}}', n, n), 'UTF8'), 'for the test'
      FROM generate_series(1, $1::int) AS n
    RETURNING message_id)
INSERT INTO crossfade_ledger (message_id, path, outcome) SELECT message_id, 1, 2 FROM made`, n)
}

// register makes all devices but t1's d4 known, whose messages are n % 10 = 9.
func (t quarantineTest) register() {
	t.Helper()
	t.exec(`INSERT INTO device_registry (tenant_id, device_id, site_id)
	 SELECT 't' || a, 'd' || b, 's1' FROM generate_series(0, 1) AS a, generate_series(0, 4) AS b WHERE NOT (a = 1 AND b = 4)`)
}

func (t quarantineTest) ok(args ...string) string {
	t.Helper()
	code, out, errs := call(t, append([]string{"quarantine"}, args...)...)
	if code != exitDone {
		t.Errorf("%v: exit %d\n%s%s", args, code, out, errs)
	}
	return out
}

// answer has the next prompt answered.
func (t quarantineTest) answer(line string) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	stdin := os.Stdin
	os.Stdin = r
	t.Cleanup(func() { os.Stdin = stdin; _ = r.Close() })
	_, _ = w.WriteString(line)
	_ = w.Close()
}

func TestQuarantineList(tt *testing.T) {
	t := newQuarantineTest(tt)
	t.fill(100)
	t.exec(`UPDATE quarantine_events SET device_id = E'd\x1b[2Jx\u202e', detail = E'a\nb\tc' WHERE id = 100`)
	out := t.ok("list", "--limit", "3")
	if lines := strings.Split(out, "\n"); len(lines) != 5 || !strings.HasPrefix(lines[1], "100 ") || !strings.HasPrefix(lines[3], "98 ") ||
		!strings.Contains(out, `d\x1b[2Jx\u202e`) || !strings.Contains(out, `a\x0ab\x09c`) || strings.ContainsAny(out, "\x1b\u202e") {
		t.Errorf("list:\n%q", out)
	}
	for _, c := range []struct {
		want int
		args []string
	}{
		{100, nil}, {50, []string{"--tenant", "t1"}}, {100, []string{"--tenant", "t1", "--tenant", "t0"}}, {10, []string{"--reason", "token_invalid"}},
		{10, []string{"--tenant", "t0", "--device", "d4"}}, {0, []string{"--tenant", "t,1"}}, {2, []string{"--id", "7", "--id", "9"}}, {3, []string{"--id", "7,9", "--id=8"}},
		{100, []string{"--reason", "token_invalid,UNREGISTERED_DEVICE"}}, {50, []string{"--reason", "TOKEN_INVALID", "--reason", "UNREGISTERED_DEVICE", "--tenant", "t1"}},
		{60, []string{"--since", "59m30s"}}, {40, []string{"--until", "59m30s"}}, {100, []string{"--since", "1d"}},
		{0, []string{"--until", "2020-01-01"}}, {100, []string{"--since", "2020-01-01T00:00:00+01:00"}},
	} {
		var answer struct {
			Messages []quarantinedJSON
			More     bool
		}
		out := t.ok(append([]string{"list", "--limit", "200", "--output", "json"}, c.args...)...)
		if err := json.Unmarshal([]byte(out), &answer); err != nil || len(answer.Messages) != c.want || answer.More {
			t.Errorf("%v: %d messages (%v), want %d", c.args, len(answer.Messages), err, c.want)
		}
		var groups struct {
			Groups []struct{ Messages int }
		}
		sum := 0
		out = t.ok(append([]string{"list", "--summary", "--output", "json"}, c.args...)...)
		if err := json.Unmarshal([]byte(out), &groups); err != nil {
			t.Error(err)
		}
		for _, g := range groups.Groups {
			sum += g.Messages
		}
		if sum != c.want {
			t.Errorf("%v: the summary has %d, want %d", c.args, sum, c.want)
		}
	}
	if out := t.ok("list", "--summary"); !strings.Contains(out, "TOKEN_INVALID") || strings.Count(out, "\n") != 4 {
		t.Errorf("summary:\n%s", out)
	}
}

func TestQuarantineRefuses(tt *testing.T) {
	t := newQuarantineTest(tt)
	t.fill(2)
	t.exec(`UPDATE quarantine_events SET reason = 'OWN_CODE' WHERE id = 1`)
	for _, c := range []struct {
		args []string
		says string
	}{
		{[]string{"list", "--reason", "TOKEN"}, "choose of INVALID_JSON"},
		{[]string{"list", "--since", "yesterday"}, "2026-11-23T09:00:00Z"},
		{[]string{"list", "--since", "-2h"}, "--since"},
		{[]string{"list", "--since", "1h", "--until", "2h"}, "not before"},
		{[]string{"list", "--since", "0001-01-01T00:00:00Z"}, "--since"}, // a program's time that was never set
		{[]string{"list", "--since", ""}, "--since"},
		{[]string{"purge", "--yes", "--tenant", "t1", "--until", ""}, "--until"}, // a script's variable that was never set
		{[]string{"purge", "--yes", "--tenant", "t1", "--until", "0001-01-01"}, "--until"},
		{[]string{"replay", "--yes", "--tenant", "t1", "--until="}, "--until"},
		{[]string{"list", "--reason", "\xff"}, "--reason"},
		{[]string{"list", "--reason", "TOKEN_INVALID,"}, "--reason"},
		{[]string{"purge", "--yes", "--tenant", "t1", "--reason", ""}, "--reason"}, // must not be every reason
		{[]string{"purge", "--yes", "--tenant", "t1", "--id="}, "--id"},            // nor every row
		{[]string{"purge", "--yes", "--tenant", "t1", "--id", "1,,2"}, "--id"},
		{[]string{"replay", "--yes", "--id", "99999999999999999999"}, "--id"},
		{[]string{"list", "--limit", "0"}, "--limit"},
		{[]string{"purge", "--yes"}, "--all"},
		{[]string{"purge", "--yes", "--all", "--tenant", "t1"}, "contradict"},
		{[]string{"show", "x"}, "id"},
		{[]string{"replay", "--yes", "--pipeline-max-payload-bytes", "0"}, "MaxPayloadBytes"},
	} {
		code, out, errs := call(t, append([]string{"quarantine"}, c.args...)...)
		if code != exitUsage || !strings.Contains(errs, c.says) || out != "" {
			t.Errorf("%v: exit %d, want %d and %q\n%s%s", c.args, code, exitUsage, c.says, out, errs)
		}
	}
	if out := t.ok("list", "--reason", "OWN_CODE"); !strings.Contains(out, "OWN_CODE") {
		t.Errorf("a reason of the predecessor's:\n%s", out)
	}
	t.wantCount(2, `SELECT count(*) FROM quarantine_events`)
}

func TestQuarantineAsks(tt *testing.T) {
	t := newQuarantineTest(tt)
	t.fill(10)
	t.register()
	for _, command := range []string{"purge", "replay"} {
		for answer, want := range map[string]int{"no\n": exitNo, "\n": exitNo, "": exitUsage} {
			t.answer(answer)
			code, out, errs := call(t, "quarantine", command, "--tenant", "t0")
			if code != want || out != "" || !strings.Contains(errs, "5 messages") {
				t.Errorf("%s, answered %q: exit %d, want %d\n%s%s", command, answer, code, want, out, errs)
			}
		}
	}
	t.wantCount(10, `SELECT count(*) FROM quarantine_events`)
	t.answer("y\n")
	t.ok("replay", "--id", "1")
	t.answer("YES\n")
	t.ok("purge", "2")
	t.wantCount(8, `SELECT count(*) FROM quarantine_events`)
	t.ok("replay", "--id", "1") // there is nothing to ask about
}

func TestQuarantinePurge(tt *testing.T) {
	t := newQuarantineTest(tt)
	t.fill(12_000)
	if out := t.ok("purge", "--reason", "TOKEN_INVALID", "--yes", "--output", "json"); !strings.Contains(out, `"deleted": 1200`) {
		t.Errorf("purge: %s", out)
	}
	t.wantCount(10_800, `SELECT count(*) FROM quarantine_events WHERE reason = 'UNREGISTERED_DEVICE'`)
	if out := t.ok("purge", "--all", "--yes"); !strings.Contains(out, "10800 messages deleted") {
		t.Errorf("purge: %s", out)
	}
	t.wantCount(0, `SELECT count(*) FROM quarantine_events`)
	t.wantCount(12_000, `SELECT count(*) FROM crossfade_ledger`)
}

func TestQuarantineShow(tt *testing.T) {
	t := newQuarantineTest(tt)
	t.fill(4)
	t.exec(`UPDATE quarantine_events SET payload = '{"provision_token":"hunter2","metrics":{"x":"\u001b[2J"}}', topic = E'a\x1b[2J' WHERE id = 1`)
	t.exec(`UPDATE quarantine_events SET path = 2, origin = 1, username = E't1/d1\x1b[2J', raw = convert_to($1, 'UTF8') WHERE id = 2`,
		`{"topic":"t","payload":"\"{\\\"provision\\u005ftoken\\\":\\\"hunter2\\\",\\\"a\\\":1}\""}`)
	t.exec(`UPDATE quarantine_events SET raw = convert_to('{"a":1,"provision_token":"hunter2"', 'UTF8') WHERE id = 3`)
	t.exec(`UPDATE quarantine_events SET raw = '\xff00'::bytea || convert_to('{"provision_token":"hunter2"', 'UTF8') WHERE id = 4`)
	for id, want := range map[string][]string{
		"1": {`a\x1b[2J`, "PAYLOAD\n{", `"provision_token": "[redacted]"`, "quarantined, by mqtt", "UNREGISTERED_DEVICE"},
		"2": {"jetstream, by http", `t1/d1\x1b[2J`, "RAW, ", `\\\"a\\\":1`, "[redacted]"},
		"3": {`{"a":1,"provision_token[redacted]`, "without the provision_token"},
		"4": {"ff 00 7b 22"},
	} {
		for _, output := range []string{"text", "json"} {
			out := t.ok("show", id, "--output", output)
			if strings.Contains(out, "hunter2") || strings.Contains(out, "68 75 6e 74") || strings.Contains(out, "68756e74") || strings.ContainsRune(out, '\x1b') {
				t.Errorf("show %s %s shows the secret or obeys the device:\n%q", id, output, out)
			}
			for _, w := range want {
				if output == "text" && !strings.Contains(out, w) {
					t.Errorf("show %s lacks %q:\n%s", id, w, out)
				}
			}
			if output == "json" && !json.Valid([]byte(out)) {
				t.Errorf("show %s: no JSON:\n%s", id, out)
			}
		}
	}
	if out := t.ok("show", "3", "--raw", "-"); out != `{"a":1,"provision_token":"hunter2"` {
		t.Errorf("raw: %q", out)
	}
	file := filepath.Join(t.TempDir(), "raw")
	t.ok("show", "4", "--raw", file)
	if b, err := os.ReadFile(file); err != nil || string(b) != "\xff\x00{\"provision_token\":\"hunter2\"" {
		t.Errorf("raw in a file: %q, %v", b, err)
	}
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the file's mode: %v, %v", info.Mode(), err)
	}
	if code, _, errs := call(t, "quarantine", "show", "4", "--raw", file); code != exitError || !strings.Contains(errs, "exists") {
		t.Errorf("a file that is there: exit %d, %s", code, errs)
	}
	if code, _, errs := call(t, "quarantine", "show", "99"); code != exitNo || !strings.Contains(errs, "no row 99") {
		t.Errorf("no such row: exit %d, %s", code, errs)
	}
}

// TestRedaction: however the secret is written, and whatever the text is.
func TestRedaction(t *testing.T) {
	for _, s := range []string{
		`{"provision_token":"hunter2"}`, `{"Provision_Token":"hunter2"}`, `{"provision_token":["hunter2"]}`, `[{"a":{"provision_token":{"x":"hunter2"}}}]`,
		`{"provision_token":"x","provision_token":"hunter2"}`, `{"p\u0072ovision_token":"hunter2"}`, `{"p\u0072ovision_token":"hunter2"`,
		`"{\"provision_token\":\"hunter2\"}"`, `{"payload":"{\"provision_token\":\"hunter2\""}`, `x{"provision_token":"hunter2"}`,
		`{"provision_token":"hunter2"}}`, `pprovision_token=hunter2`, "\xff\"provision_token\":\"hunter2\"",
		`{"payload":"\"{\\\"provision\\u005Ftoken\\\":\\\"hunter2\\\"}\""}`,
	} {
		if got := redact.Cut(s); strings.Contains(got, "hunter2") || !strings.Contains(got, redact.Mark) {
			t.Errorf("%s becomes %s", s, got)
		}
	}
	for _, s := range []string{``, `{"a" : 1}`, `provision_toke`, `{"provision":"token"}`, "\xff", `\\\`, `\u00`} {
		if got := redact.Cut(s); got != s {
			t.Errorf("%q becomes %q", s, got)
		}
	}
}

func FuzzRedactText(f *testing.F) {
	f.Add(`{"payload":"{\"provision_token\":\"SECRET\"}"}`, true)
	f.Add(`{"provision_token":"SECRET"`, false)
	f.Fuzz(func(t *testing.T, s string, quote bool) {
		_ = printable(s)
		_ = cell(s, 10)
		body := `{"x":` + s + `,"provision_token":"S3CRET-9"}`
		if quote {
			b, err := json.Marshal(body)
			if err != nil {
				t.Fatal(err)
			}
			body = string(b)
		}
		if strings.Contains(s, "S3CRET-9") {
			return
		}
		if got := redact.Cut(body); strings.Contains(got, "S3CRET-9") {
			t.Errorf("%q becomes %q", body, got)
		}
	})
}

// TestReasonsAreAll: every code that the pipeline gives can be filtered by.
func TestReasonsAreAll(t *testing.T) {
	source, err := os.ReadFile("../../pipeline/reason.go")
	if err != nil {
		t.Fatal(err)
	}
	found := regexp.MustCompile(`Reason = "([A-Z_]+)"`).FindAllStringSubmatch(string(source), -1)
	if len(found) != len(reasons) || len(found) == 0 {
		t.Errorf("%d codes, %d are listed", len(found), len(reasons))
	}
	for _, m := range found {
		if !slices.Contains(reasons, pipeline.Reason(m[1])) {
			t.Errorf("%s is not listed", m[1])
		}
	}
}

func TestQuarantineProgress(t *testing.T) {
	var out strings.Builder
	at := time.Unix(0, 0)
	p := &progress{out: &out, verb: "replayed", total: 1000, start: at, last: at, now: func() time.Time { return at }}
	for range 10 {
		at = at.Add(2 * time.Second)
		p.add(100)
	}
	p.end()
	if want := "300 of 1000 replayed, 50/s, 14s left\n600 of 1000 replayed, 50/s, 8s left\n900 of 1000 replayed, 50/s, 2s left\n"; out.String() != want {
		t.Errorf("got\n%swant\n%s", out.String(), want)
	}
}

func TestQuarantineHelp(t *testing.T) {
	for _, command := range []string{"list", "show", "replay", "purge"} {
		code, out, errs := call(t, "quarantine", command, "--help")
		if code != exitDone || !strings.Contains(out, "Examples:") || !strings.Contains(out, fmt.Sprintf("crossfade quarantine %s", command)) {
			t.Errorf("quarantine %s --help: exit %d\n%s%s", command, code, out, errs)
		}
	}
}
