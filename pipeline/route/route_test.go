package route_test

import (
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/crossfade-io/crossfade/pipeline"
	"github.com/crossfade-io/crossfade/pipeline/route"
)

type receipt struct{}

func (receipt) Ack() error          { return nil }
func (receipt) Release() error      { return nil }
func (receipt) Occurred() time.Time { return time.UnixMilli(1_795_435_200_000) }

const topic = "tenant/t1/device/d1/telemetry"

// byMQTT is a message as its device sent it.
func byMQTT(payload string) *pipeline.Message {
	return decode(&pipeline.Delivery{Path: pipeline.PathMQTT, Topic: topic, Body: []byte(payload)})
}

// byJetStream is a message whose payload stands in an envelope.
func byJetStream(payload string) *pipeline.Message {
	return decode(&pipeline.Delivery{Path: pipeline.PathJetStream, Subject: "telemetry.t1",
		Body: fmt.Appendf(nil, `{"topic": %q, "ts": 1795435200000, "payload": %s}`, topic, payload)})
}

func decode(d *pipeline.Delivery) *pipeline.Message {
	d.Receipt = receipt{}
	m := new(pipeline.Message)
	pipeline.NewDecoder(pipeline.DefaultMessageIDMember).Decode(m, d)
	return m
}

func compile(t testing.TB, filter string) *route.Route {
	t.Helper()
	r, err := route.Compile(route.Row{ID: "1", NumericID: true, Tenant: "t1", TopicFilter: "#", DestinationType: route.DestinationWebhook, PayloadFilter: filter})
	if err != nil {
		t.Fatalf("%s: %v", filter, err)
	}
	return r
}

func TestPayloadFilters(t *testing.T) {
	const payload = `{"site_id":"s1","seq":7,"temp":1,"ts":null,"metrics":{"temp":85.5,"hum":"40","door":true,"shut":false,
		"mode":"eco","zero":-0.0,"big":1e400,"list":[1,{"b":2,"a":1}],"none":null,"text":"22.5","num":22.50,"true":"true"}}`
	var all, matching []*route.Route
	for filter, want := range map[string]bool{
		``: true, `null`: true, `{}`: true,
		`{"temp":{"$gt":80}}`:                         true,
		`{"temp":{"$gt":80,"$lte":100}}`:              true,
		`{"temp":{"$gt":80,"$lt":85.5}}`:              false,
		`{"temp":{"$gte":85.5}}`:                      true,
		`{"temp":{"$gt":85.5}}`:                       false,
		`{"temp":{"$lt":85.5}}`:                       false,
		`{"temp":{"$lte":85.5}}`:                      true,
		`{"temp":{"$eq":8.55e1}}`:                     true,
		`{"temp":{"$ne":85.5}}`:                       false,
		`{"temp":{"$ne":1}}`:                          true, // metrics come first
		`{"temp":{"$gt":80},"mode":"eco"}`:            true,
		`{"temp":{"$gt":80},"mode":"boost"}`:          false,
		`{"temp":{"$gt":80},"missing":{"$lt":1}}`:     false,
		`{"missing":"x"}`:                             false,
		`{"missing":null}`:                            false,
		`{"missing":{}}`:                              false,
		`{"missing":{"$ne":1}}`:                       false,
		`{"temp":{}}`:                                 true,
		`{"seq":7}`:                                   true,
		`{"seq":{"$gt":6}}`:                           true,
		`{"site_id":"s1"}`:                            true,
		`{"hum":{"$gt":30}}`:                          false, // a text is no number
		`{"hum":{"$ne":30}}`:                          false,
		`{"hum":40}`:                                  true, // but equal as text
		`{"door":true}`:                               true,
		`{"door":"true"}`:                             true,
		`{"door":1}`:                                  false,
		`{"door":{"$eq":1}}`:                          false,
		`{"shut":false}`:                              true,
		`{"shut":"false"}`:                            true,
		`{"true":true}`:                               true,
		`{"num":22.5}`:                                true,
		`{"num":"22.5"}`:                              true,
		`{"num":"22.50"}`:                             false,
		`{"text":22.50}`:                              true,
		`{"text":"22.5"}`:                             true,
		`{"num":2.25e1}`:                              true,
		`{"zero":0}`:                                  true,
		`{"zero":"0"}`:                                true,
		`{"zero":"-0"}`:                               false,
		`{"big":1e999}`:                               true,
		`{"big":{"$gt":1e308}}`:                       true,
		`{"none":null}`:                               true,
		`{"none":"null"}`:                             true,
		`{"none":{"$gt":0}}`:                          false,
		`{"ts":null}`:                                 false, // null is no time: a producer may replace it
		`{"list":[1,{"a":1,"b":2.0}]}`:                true,
		`{"list":"[1,{\"a\":1,\"b\":2}]"}`:            true,
		`{"list":[1]}`:                                false,
		`{"mode":""}`:                                 false,
		`{"mode":"eco","mode":"boost"}`:               false, // of duplicates the last counts
		`{"MODE":"eco"}`:                              false,
		`{"metrics":"x"}`:                             false,
		"{\"mode\":\"\\u0065co\"}":                    true,
		` { "temp" : { "$gt" : 80 } , "seq" : { } } `: true,
	} {
		r := compile(t, filter)
		all = append(all, r)
		if want {
			matching = append(matching, r)
		}
		for path, m := range map[string]*pipeline.Message{"mqtt": byMQTT(payload), "jetstream": byJetStream(payload)} {
			if got := r.Match(m); got != want {
				t.Errorf("%s by %s: %v, want %v", filter, path, got, want)
			}
		}
	}
	if got := route.NewSet(all).Match(nil, byMQTT(payload)); !slices.Equal(got, matching) {
		t.Errorf("as a set %d match, want %d", len(got), len(matching))
	}
}

// TestInjectedTimeIsNotSeen: what a producer adds to one path's copy must not make
// the paths differ.
func TestInjectedTimeIsNotSeen(t *testing.T) {
	r := compile(t, `{"ts":{"$gt":0}}`)
	if r.Match(byJetStream(`{"site_id":"s1","seq":1,"ts":1795435200.001}`)) {
		t.Error("the filter saw the time that the producer added")
	}
	if !r.Match(byJetStream(`{"site_id":"s1","seq":1,"ts":1795435100}`)) {
		t.Error("the filter did not see the device's own time")
	}
	sent := `{"site_id":"s1","seq":1,"metrics":{"b":2.50,"a":"\u00e9\u0000"}}`
	reserialized := `{"ts":1795435200.0,"metrics":{"a":"é\u0000","b":25e-1},"seq":1.0,"site_id":"s1"}`
	first, second := byMQTT(sent), byJetStream(reserialized)
	if first.ID != second.ID {
		t.Fatal("the copies are not of one message")
	}
	a := r.AppendBody(nil, first.RawTopic, first.AppendPayload(nil))
	b := r.AppendBody(nil, second.RawTopic, second.AppendPayload(nil))
	if string(a) != string(b) {
		t.Errorf("the paths make different bodies:\n%s\n%s", a, b)
	}
	if strings.Contains(string(b), "1795435200") {
		t.Errorf("the body holds what the producer added: %s", b)
	}
}

func TestBody(t *testing.T) {
	r, err := route.Compile(route.Row{ID: "7", NumericID: true, Tenant: `t"1`, TopicFilter: `tenant/+/device/"/#`, DestinationType: route.DestinationMQTTRepublish,
		DestinationConfig: `{"topic": "out\n", "big": 12345678901234567890}`, PayloadFilter: `{"temp": {"$gt": 8.50}}`})
	if err != nil {
		t.Fatal(err)
	}
	got := r.AppendBody([]byte("x"), "tenant/t\x01/ü", []byte(`{"a":1}`))
	want := `x{"route":{"id":7,"topic_filter":"tenant/+/device/\"/#","destination_type":"mqtt_republish","destination_config":{"topic":"out\n","big":12345678901234567890},"payload_filter":{"temp":{"$gt":8.50}}},` +
		`"topic":"tenant/t\u0001/ü","payload":{"a":1},"tenant_id":"t\"1"}`
	if string(got) != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if !json.Valid(got[1:]) {
		t.Error("the body is no JSON")
	}
}

func TestIDsKeepTheirType(t *testing.T) {
	for row, want := range map[route.Row]any{
		{ID: "12", NumericID: true}: float64(12),
		{ID: "12"}:                  "12",
		{ID: "2f1e8a4c-0000-4000-8000-000000000001"}: "2f1e8a4c-0000-4000-8000-000000000001",
	} {
		row.TopicFilter, row.DestinationType = "#", route.DestinationWebhook
		r, err := route.Compile(row)
		if err != nil {
			t.Fatal(err)
		}
		var body struct{ Route map[string]any }
		if err := json.Unmarshal(r.AppendBody(nil, "a", []byte("{}")), &body); err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(body.Route["id"], want) || body.Route["payload_filter"] != nil || !reflect.DeepEqual(body.Route["destination_config"], map[string]any{}) {
			t.Errorf("%+v makes route %v", row, body.Route)
		}
	}
}

func TestUnreadableRows(t *testing.T) {
	good := route.Row{ID: "1", NumericID: true, Tenant: "t1", TopicFilter: "#", DestinationType: route.DestinationWebhook}
	for what, c := range map[string]struct {
		change func(*route.Row)
		word   string
	}{
		"topic filter":         {func(r *route.Row) { r.TopicFilter = "a/#/b" }, "topic_filter"},
		"no id":                {func(r *route.Row) { r.ID = "" }, "id"},
		"id with a line end":   {func(r *route.Row) { r.ID, r.NumericID = "a\nb", false }, "id"},
		"id with a space":      {func(r *route.Row) { r.ID, r.NumericID = "a ", false }, "id"},
		"no topic filter":      {func(r *route.Row) { r.TopicFilter = "" }, "topic_filter"},
		"destination":          {func(r *route.Row) { r.DestinationType = "fax" }, "destination_type"},
		"config":               {func(r *route.Row) { r.DestinationConfig = "{" }, "destination_config"},
		"config of bad bytes":  {func(r *route.Row) { r.DestinationConfig = "\"\xff\"" }, "destination_config"},
		"filter":               {func(r *route.Row) { r.PayloadFilter = "{" }, "payload_filter"},
		"filter of no object":  {func(r *route.Row) { r.PayloadFilter = `"a"` }, "payload_filter"},
		"unknown operator":     {func(r *route.Row) { r.PayloadFilter = `{"a":{"$regex":"x"}}` }, `"$regex"`},
		"nested object":        {func(r *route.Row) { r.PayloadFilter = `{"a":{"b":1}}` }, `"b"`},
		"operand is no number": {func(r *route.Row) { r.PayloadFilter = `{"a":{"$gt":"80"}}` }, "$gt"},
		"deep filter": {func(r *route.Row) {
			r.PayloadFilter = `{"a":` + strings.Repeat("[", 50) + strings.Repeat("]", 50) + `}`
		}, "deep"},
		"integer that is none": {func(r *route.Row) { r.ID = "007" }, "id"},
	} {
		r := good
		c.change(&r)
		if _, err := route.Compile(r); err == nil || !strings.Contains(err.Error(), c.word) {
			t.Errorf("%s: got %v, want an error that says %s", what, err, c.word)
		}
	}
}

// TestPostgreSQLIsNotPublished: the row is written already.
func TestPostgreSQLIsNotPublished(t *testing.T) {
	r, err := route.Compile(route.Row{ID: "1", TopicFilter: "#", DestinationType: route.DestinationPostgreSQL})
	if err != nil {
		t.Fatal(err)
	}
	if got := route.NewSet([]*route.Route{r, compile(t, "")}).Match(nil, byMQTT(`{"site_id":"s1"}`)); len(got) != 1 || got[0] == r {
		t.Errorf("matched %v", got)
	}
}

// TestMatchingAllocatesNothing: every message is asked, few match.
func TestMatchingAllocatesNothing(t *testing.T) {
	m := byMQTT(`{"site_id":"s1","seq":1,"metrics":{"temp":20.25,"mode":"eco","door":true,"n":123456789.123}}`)
	other, err := route.Compile(route.Row{ID: "1", TopicFilter: "tenant/t1/device/+/heartbeat", DestinationType: route.DestinationWebhook})
	if err != nil {
		t.Fatal(err)
	}
	set := route.NewSet([]*route.Route{other, compile(t, `{"temp":{"$gt":80}}`), compile(t, `{"mode":"boost"}`), compile(t, `{"door":false}`),
		compile(t, `{"n":"x"}`), compile(t, `{"temp":21}`), compile(t, `{"missing":1}`)})
	var matched []*route.Route
	if n := testing.AllocsPerRun(100, func() { matched = set.Match(nil, m) }); n != 0 || len(matched) != 0 {
		t.Errorf("%v allocations, %d matches", n, len(matched))
	}
}

func FuzzCompile(f *testing.F) {
	f.Add("tenant/+/device/+/#", `{"temp":{"$gt":80}}`, `{"url":"x"}`, `{"metrics":{"temp":81}}`)
	f.Add("a/#/b", `{"a":"\ud800"}`, `[]`, `{"a":"\ud800"}`)
	f.Add("#", `{"a":{"$eq":1e999}}`, "", `{"a":1e400,"ts":1795435200.0}`)
	f.Fuzz(func(t *testing.T, filter, payloadFilter, config, payload string) {
		r, err := route.Compile(route.Row{ID: "x" + filter, Tenant: "t1", TopicFilter: filter, DestinationType: route.DestinationWebhook,
			DestinationConfig: config, PayloadFilter: payloadFilter})
		m := byMQTT(payload)
		if err != nil || m.Failed != pipeline.Accepted {
			return
		}
		r.Match(m)
		body := r.AppendBody(nil, m.RawTopic, m.AppendPayload(nil))
		if !json.Valid(body) {
			t.Errorf("the body is no JSON: %s", body)
		}
		if r2, err := route.Compile(route.Row{ID: "1", Tenant: "t1", TopicFilter: filter, DestinationType: route.DestinationWebhook}); err != nil || !r2.Match(m) && r.Match(m) {
			t.Errorf("a payload filter took more than none: %v", err)
		}
	})
}
