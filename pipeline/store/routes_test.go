package store_test

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/crossfade-io/crossfade/pipeline/route"
	"github.com/crossfade-io/crossfade/pipeline/store"
)

// routes looks tenants' routes up and returns the IDs of those that take a message
// of t1's device, and what the problems say.
func (t storeTest) routes(tenants ...string) (ids, problems []string) {
	t.Helper()
	sets, list, err := t.Routes(t.Context(), tenants)
	if err != nil {
		t.Fatal(err)
	}
	m := telemetry(`{"site_id":"s1","seq":1,"metrics":{"temp":90}}`).Msg
	for _, tenant := range tenants {
		for _, r := range sets[tenant].Match(nil, m) {
			ids = append(ids, r.ID)
		}
	}
	for _, p := range list {
		problems = append(problems, p.Error())
	}
	return ids, problems
}

func TestRoutes(tt *testing.T) {
	t := newStoreTest(tt)
	t.exec(`INSERT INTO message_routes (id, tenant_id, name, topic_filter, destination_type, destination_config, payload_filter, is_enabled) VALUES
		(1, 't1', 'all', '#', 'webhook', '{"url":"http://x"}', NULL, true),
		(2, 't1', 'off', '#', 'webhook', '{}', NULL, false),
		(3, 't1', 'bad filter', 'a/#/b', 'webhook', '{}', NULL, true),
		(4, 't1', 'bad condition', '#', 'webhook', '{}', '{"temp":{"$near":80}}', true),
		(5, 't1', 'hot', 'tenant/+/device/+/telemetry', 'mqtt_republish', '{}', '{"temp":{"$gt":80}}', true),
		(6, 't1', 'frozen', '#', 'webhook', '{}', '{"temp":{"$lt":0}}', true),
		(7, 't1', 'row', '#', 'postgresql', '{}', NULL, true),
		(8, 't2', 'other', '#', 'webhook', '{}', 'null', true)`)
	ids, problems := t.routes("t1", "t2", "nobody", "no\x00body", "\xff")
	if got := strings.Join(ids, " "); got != "1 5 8" {
		t.Errorf("routes %s match, want 1 5 8", got)
	}
	if len(problems) != 2 || !strings.Contains(problems[0], "route 3 of tenant t1") || !strings.Contains(problems[1], "$near") {
		t.Errorf("problems are %q", problems)
	}
	if ids, _ := t.routes("t2"); fmt.Sprint(ids) != "[8]" {
		t.Errorf("routes %v of t2 match, want [8]", ids)
	}
}

// TestRoutesOfAnAdoptedDatabase: other keys, JSON in text columns, a number for a
// boolean.
func TestRoutesOfAnAdoptedDatabase(tt *testing.T) {
	t := newStoreTest(tt)
	t.exec(`DROP TABLE message_routes`)
	t.exec(`CREATE TABLE message_routes (id uuid, tenant_id varchar(64), name text, topic_filter varchar(200), destination_type varchar(20),
		destination_config json, payload_filter text, is_enabled int)`)
	t.exec(`INSERT INTO message_routes VALUES
		('2f1e8a4c-0000-4000-8000-000000000001', 't1', 'a', '#', 'webhook', '{ "url": "x" }', '{"temp": {"$gt": 80}}', 1),
		('2f1e8a4c-0000-4000-8000-000000000002', 't1', 'b', '#', 'webhook', NULL, '{"temp', 1),
		('2f1e8a4c-0000-4000-8000-000000000003', 't1', 'c', '#', 'webhook', NULL, '', 0),
		('2f1e8a4c-0000-4000-8000-000000000004', 't1', NULL, NULL, NULL, NULL, NULL, 1),
		('2f1e8a4c-0000-4000-8000-000000000001', 't1', 'the same again', '#', 'webhook', NULL, NULL, 1),
		('2f1e8a4c-0000-4000-8000-000000000001', 't2', 'another tenant''s', '#', 'webhook', NULL, NULL, 1),
		(NULL, 't1', 'd', '#', 'webhook', NULL, NULL, 1), (NULL, NULL, 'd', '#', 'webhook', NULL, NULL, NULL)`)
	ids, problems := t.routes("t1")
	if len(ids) != 1 || ids[0] != "2f1e8a4c-0000-4000-8000-000000000001" || len(problems) != 4 || !strings.Contains(problems[0], "id is that of another route") {
		t.Errorf("routes %v, problems %q", ids, problems)
	}
	if ids, _ := t.routes("t1", "t2"); len(ids) != 2 {
		t.Errorf("routes %v of both tenants", ids)
	}
	e := telemetry(`{"site_id":"s1","seq":1,"metrics":{"temp":90}}`)
	sets, _, err := t.Routes(t.Context(), []string{"t1"})
	if err != nil {
		t.Fatal(err)
	}
	e.Routes = sets["t1"].Match(nil, e.Msg)
	t.wantFresh("the message", 1, e)
	var body struct{ Route map[string]any }
	if err := json.Unmarshal([]byte(t.strings(`SELECT convert_from(body, 'UTF8') FROM crossfade_outbox`)[0]), &body); err != nil {
		t.Fatal(err)
	}
	if fmt.Sprintf("%v %v", body.Route["id"], body.Route["destination_config"]) != "2f1e8a4c-0000-4000-8000-000000000001 map[url:x]" {
		t.Errorf("route is %v", body.Route)
	}
}

// TestRoutesBeyondTheirBounds: the first ones work, and the problem names the tenant, the
// first that does not, and the way out. Other tenants do not notice.
func TestRoutesBeyondTheirBounds(tt *testing.T) {
	t := newStoreTest(tt)
	for name, c := range map[string]struct {
		sql      string // $1 to $3: the id, its tenant, the length of its configuration
		works    int
		problems []string
	}{
		"many":     {`SELECT n, CASE WHEN n <= 10002 THEN 't1' ELSE 't2' END, 0 FROM generate_series(1, 10003) AS n`, 10_001, []string{"route 10001 of tenant t1 ", "wildcards"}},
		"just not": {`SELECT n, 't1', 0 FROM generate_series(1, 10000) AS n`, 10_000, nil},
		"long":     {`SELECT n, 't1', CASE n WHEN 2 THEN 262144 ELSE 262000 END FROM generate_series(1, 3) AS n`, 2, []string{"route 2 of tenant t1 ", "262144 are the most"}},
		"altogether": {`SELECT n, 't1', CASE n WHEN 1 THEN 300000 ELSE 250000 END FROM generate_series(1, 80) AS n UNION ALL SELECT 81, 't2', 250000`,
			68, []string{"route 1 of tenant t1 ", "route 69 of tenant t1 ", "16 MiB"}},
	} {
		t.exec(`TRUNCATE message_routes`)
		t.exec(`INSERT INTO message_routes (id, tenant_id, name, topic_filter, destination_type, destination_config)
			SELECT id, tenant, 'x', '#', 'webhook', jsonb_build_object('url', repeat('x', length)) FROM (` + c.sql + `) AS v (id, tenant, length)`)
		ids, problems := t.routes("t1", "t2")
		said := strings.Join(problems, "\n")
		for _, want := range c.problems {
			if !strings.Contains(said, want) {
				t.Errorf("%s: the problems lack %q:\n%s", name, want, said)
			}
		}
		if len(ids) != c.works || len(problems) != strings.Count(strings.Join(c.problems, ""), "route ") {
			t.Errorf("%s: %d routes work, want %d; the problems are\n%s", name, len(ids), c.works, said)
		}
	}
}

func testRoute(t *testing.T, id string) *route.Route {
	t.Helper()
	r, err := route.Compile(route.Row{ID: id, NumericID: true, Tenant: "t1", TopicFilter: "#", DestinationType: route.DestinationWebhook})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// TestOutboxRows: a row for each match, in order, in the transaction, and only of
// what takes effect as telemetry.
func TestOutboxRows(tt *testing.T) {
	t := newStoreTest(tt)
	one, two := testRoute(tt, "1"), testRoute(tt, "2")
	a := telemetry(`{"site_id":"s1","seq":1}`)
	a.Routes = []*route.Route{one, two}
	b := telemetry(`{"site_id":"s1","seq":2}`)
	b.Routes = []*route.Route{two}
	none := telemetry(`{"site_id":"s1","seq":3}`)
	bad := refuse(telemetry(`{"site_id":"s1","seq":4}`), "SITE_MISMATCH_REGISTRY_VS_PAYLOAD")
	bad.Routes = []*route.Route{one}
	again := a
	t.wantFresh("first batch", 4, a, b, none, bad, again)
	t.wantFresh("the same again", 0, a, b)
	got := t.strings(`SELECT concat_ws(' ', tenant_id, device_id, route_id, convert_from(body, 'UTF8')::jsonb #>> '{payload,seq}', convert_from(body, 'UTF8')::jsonb ->> 'topic')
		FROM crossfade_outbox ORDER BY id`)
	want := []string{"t1 d1 1 1 " + telemetryTopic, "t1 d1 2 1 " + telemetryTopic, "t1 d1 2 2 " + telemetryTopic}
	if !slices.Equal(got, want) {
		t.Errorf("the outbox holds\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	t.wantCount(1, `SELECT count(DISTINCT lane) FROM crossfade_outbox`)
	t.wantCount(3, `SELECT count(*) FROM crossfade_outbox AS o JOIN crossfade_ledger AS l USING (message_id)`)
}

// TestOutboxOfLargeMatches: many large rows are more than one COPY.
func TestOutboxOfLargeMatches(tt *testing.T) {
	t := newStoreTest(tt)
	var routes []*route.Route
	for i := range 50 {
		routes = append(routes, testRoute(tt, fmt.Sprint(i)))
	}
	var expected []string
	e := telemetry(`{"site_id":"s1","seq":1,"note":"` + strings.Repeat("x", 500_000) + `"}`)
	e.Routes = routes
	for i := range routes {
		expected = append(expected, fmt.Sprint(i))
	}
	t.wantFresh("the message", 1, e)
	if got := t.strings(`SELECT route_id FROM crossfade_outbox ORDER BY id`); !slices.Equal(got, expected) {
		t.Errorf("the outbox holds routes %v", got)
	}
	t.wantCount(50, `SELECT count(*) FROM crossfade_outbox WHERE length(convert_from(body, 'UTF8')::jsonb #>> '{payload,note}') = 500000`)
}

// TestOutboxKeepsTheOrderOfCommits: a row gets its ID under its device's lock, or a
// later message could be published before one whose transaction began earlier.
func TestOutboxKeepsTheOrderOfCommits(tt *testing.T) {
	t := newStoreTest(tt)
	e := telemetry(`{"site_id":"s1","seq":1}`)
	t.wantFresh("the device's first message", 1, e)
	holder, err := t.pool.Begin(t.Context())
	t.must(err)
	defer holder.Rollback(t.Context())
	if _, err := holder.Exec(t.Context(), `SELECT FROM device_state FOR UPDATE`); err != nil {
		t.Fatal(err)
	}
	late := telemetry(`{"site_id":"s1","seq":2}`)
	late.Routes = []*route.Route{testRoute(tt, "1")}
	done := make(chan error, 1)
	go func() { done <- t.Commit(t.Context(), []store.Entry{late}) }()
	t.eventually("the commit waits for the device", func() bool {
		return t.count(`SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'`) == 1
	})
	t.wantCount(0, `SELECT count(*) FROM pg_sequences WHERE sequencename = 'crossfade_outbox_id_seq' AND last_value IS NOT NULL`)
	t.must(holder.Rollback(t.Context()))
	t.must(<-done)
	t.wantCount(1, `SELECT count(*) FROM crossfade_outbox`)
}
