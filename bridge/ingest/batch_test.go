package ingest_test

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/crossfade-io/crossfade/bridge/ingest"
)

const batchPath = "/ingest/v1/batch"

// device1 is how the device t1/d1 sends a batch, gateway how a gateway of all tenants.
var (
	device1 = headers{"X-Tenant-ID": "t1", "X-Device-ID": "d1", "X-Provision-Token": "tok-d1"}
	gateway = headers{"Authorization": "Bearer gateway"}
)

func batchItem(device, token, payload string) string {
	return fmt.Sprintf(`{"tenant_id":"t1","device_id":%q,"msg_type":"telemetry","provision_token":%q,"payload":%s}`, device, token, payload)
}

func batchOf(items ...string) string { return `{"messages":[` + strings.Join(items, ",") + `]}` }

type answer struct {
	Accepted, Rejected int
	Results            []struct {
		Index, Status int
		Error         string
	}
}

// batch sends one and returns the status and those of its messages.
func (r *rig) batch(h headers, body string) (status int, header http.Header, statuses string, a answer) {
	r.t.Helper()
	status, header, text := r.post(batchPath, h, body)
	if status != 202 && status != 207 {
		return status, header, text, a
	}
	r.must(json.Unmarshal([]byte(text), &a))
	var got []int
	for i, res := range a.Results {
		got = append(got, res.Status)
		if res.Index != i || (res.Status == 202) != (res.Error == "") {
			r.t.Errorf("result %d: %+v", i, res)
		}
	}
	if (status == 202) != (a.Rejected == 0) || a.Accepted+a.Rejected != len(got) {
		r.t.Errorf("%d: %s", status, text)
	}
	return status, header, fmt.Sprint(got), a
}

// TestBatch: each message has a result of its own, what is good is stored in order, and
// who sends is asked once.
func TestBatch(t *testing.T) {
	r := newRig(t, asIs)
	status, _, got, _ := r.batch(device1, batchOf(batchItem("d1", "tok-d1", `{"n":0}`), batchItem("d2", "tok-d2", `{"n":1}`),
		batchItem("d1", "", `{"n":2}`), batchItem("d1", "x", `[]`), batchItem("d1", "other", `{"n":4}`)))
	if status != 207 || got != "[202 403 202 422 202]" || r.people.asked != 1 {
		t.Errorf("%d %s, asked %d times", status, got, r.people.asked)
	}
	status, _, got, _ = r.batch(gateway, batchOf(batchItem("d8", "tok-d8", `{}`), batchItem("d9", "", `{}`)))
	if status != 202 || got != "[202 202]" {
		t.Errorf("%d %s", status, got)
	}
	want := func(device, token string, n int) string {
		return fmt.Sprintf(`telemetry.t1 "tenant/t1/device/%s/telemetry" {"provision_token":"%s","n":%d}`, device, token, n)
	}
	r.wantStored(want("d1", "tok-d1", 0), want("d1", "tok-d1", 2), want("d1", "other", 4),
		`telemetry.t1 "tenant/t1/device/d8/telemetry" {"provision_token":"tok-d8"}`, `telemetry.t1 "tenant/t1/device/d9/telemetry" {}`)
	all := batchOf(batchItem("d1", "", `{"a":1}`), strings.ReplaceAll(batchItem("d1", "", `{}`), `"t1"`, `"t2"`), strings.ReplaceAll(batchItem("d1", "", `{}`), `"t1"`, `"a b"`))
	if status, _, got, _ := r.batch(headers{"Authorization": "Bearer gateway-t1"}, all); status != 207 || got != "[202 403 403]" {
		t.Errorf("a gateway of one tenant: %d %s", status, got)
	}
	if status, _, got, _ := r.batch(gateway, all); status != 207 || got != "[202 202 422]" {
		t.Errorf("a gateway: %d %s", status, got)
	}
}

// TestBatchRefused: a batch that is none, or of nobody who may send one, has one answer.
func TestBatchRefused(t *testing.T) {
	r := newRig(t, func(o *ingest.Options) { o.MaxBatch, o.MaxBatchBody = 20, 10_000 })
	one := batchOf(batchItem("d1", "tok-d1", `{}`))
	for _, c := range []struct {
		h      headers
		body   string
		status int
		want   string
	}{
		{nil, one, 401, "X-Provision-Token"},
		{headers{"X-Provision-Token": "tok-d1"}, one, 401, "X-Provision-Token"},
		{headers{"X-Tenant-ID": "t1", "X-Device-ID": "d1"}, one, 401, "X-Provision-Token"},
		{headers{"X-Tenant-ID": "t1", "X-Device-ID": "d2", "X-Provision-Token": "tok-d1"}, one, 401, ""},
		{headers{"X-Tenant-ID": "t1", "X-Device-ID": "d1", "X-Provision-Token": "tok-d1", "Authorization": "Bearer wrong"}, one, 401, ""},
		{headers{"X-Tenant-ID": "t1", "X-Device-ID": "eager", "X-Provision-Token": "x"}, one, 429, ""},
		{headers{"X-Tenant-ID": "t1", "X-Device-ID": "away", "X-Provision-Token": "x"}, one, 503, ""},
		{gateway, batchOf(), 400, "empty"},
		{gateway, `{}`, 400, "missing"},
		{gateway, `[]`, 400, "object"},
		{gateway, `{"messages":null}`, 400, "list"},
		{gateway, `{"messages":{}}`, 400, "list"},
		{gateway, `{"Messages":[{}]}`, 400, "not known"},
		{gateway, strings.Replace(one, `{"messages"`, `{"x":1,"messages"`, 1), 400, "not known"},
		{gateway, `{"messages":[],"messages":[{}]}`, 400, "twice"},
		{gateway, one + "x", 400, "not JSON"},
		{gateway, one[:len(one)-1], 400, "not JSON"},
		{gateway, batchOf(strings.Split(strings.Repeat("{},", 21), ",")[:21]...), 413, "more than 20"},
		{gateway, `{"messages":"` + strings.Repeat("x", 1<<20) + `"}`, 413, ""},
		{headers{"Authorization": "Bearer gateway", "Content-Type": "text/plain"}, one, 415, "application/json"},
		{headers{"Authorization": "Bearer gateway", "X-Provision-Token": strings.Repeat("x", 600)}, one, 422, "too long"},
	} {
		status, h, answer := r.post(batchPath, c.h, c.body)
		if status != c.status || !strings.Contains(answer, c.want) {
			t.Errorf("%v %.80s: %d %s, want %d %q", c.h, c.body, status, answer, c.status, c.want)
		}
		if (status == 503 || status == 429) != (h.Get("Retry-After") != "") || (status == 401) != (h.Get("WWW-Authenticate") != "") {
			t.Errorf("%v %.80s: %d with headers %v", c.h, c.body, status, h)
		}
	}
	r.wantStored()
}

// TestBatchItems are read as strictly as a body of its own would be.
func TestBatchItems(t *testing.T) {
	r := newRig(t, func(o *ingest.Options) { o.MaxBody = 200 })
	good := batchItem("d1", "", `{"n":1}`)
	for item, c := range map[string]struct {
		status int
		want   string
	}{
		good:                                     {202, ""},
		`7`:                                      {422, "not a JSON object"},
		strings.Replace(good, `"d1"`, `7`, 1):    {422, "device_id must be text"},
		strings.Replace(good, `"d1"`, `null`, 1): {422, "device_id must be text"},
		strings.Replace(good, `"d1"`, `"\ud800"`, 1):                               {422, "device_id must be text"},
		strings.Replace(good, `"provision_token":""`, `"provision_token":null`, 1): {202, ""},
		strings.Replace(good, `"payload"`, `"Payload"`, 1):                         {422, "not known"},
		strings.Replace(good, `"tenant_id"`, `"x":1,"tenant_id"`, 1):               {422, "not known"},
		strings.Replace(good, `"tenant_id"`, `"device_id":"d1","tenant_id"`, 1):    {422, "device_id is there twice"},
		strings.Replace(good, `"tenant_id"`, `"payload":{},"tenant_id"`, 1):        {422, "payload is there twice"},
		strings.Replace(good, `,"payload":{"n":1}`, ``, 1):                         {422, "payload is missing"},
		strings.Replace(good, `"n"`, "\"\xff\"", 1):                                {422, "UTF-8"},
		strings.Replace(good, `"n"`, `"`+strings.Repeat("n", 200)+`"`, 1):          {413, "larger than 200"},
		strings.Replace(good, `telemetry`, `commands`, 1):                          {422, "not for devices"},
		strings.Replace(good, `"msg_type":"telemetry",`, ``, 1):                    {422, "msg_type"},
	} {
		_, _, got, a := r.batch(gateway, batchOf(good, item, good))
		if got != fmt.Sprintf("[202 %d 202]", c.status) || !strings.Contains(a.Results[1].Error, c.want) {
			t.Errorf("%s: %s %+v, want %d %q", item, got, a, c.status, c.want)
		}
	}
}

// TestBatchRate: every message counts; what is too much is not stored, and may come again.
func TestBatchRate(t *testing.T) {
	r := newRig(t, asIs)
	r.people.atOnce = 2
	body := batchOf(batchItem("d1", "", `{"n":0}`), batchItem("d1", "", `{"n":1}`), batchItem("d1", "", `{"n":2}`), batchItem("d1", "", `[]`))
	for _, h := range []headers{device1, gateway} {
		status, header, got, a := r.batch(h, body)
		if status != 207 || got != "[202 202 429 429]" || header.Get("Retry-After") != "7" || !strings.Contains(a.Results[2].Error, "slowly") {
			t.Errorf("%v: %d %s %v %+v", h, status, got, header, a)
		}
		if status, header, got, _ := r.batch(h, batchOf(batchItem("d1", "", `{}`))); status != 202 || got != "[202]" || header.Get("Retry-After") != "" {
			t.Errorf("%v: one alone: %d %s", h, status, got)
		}
	}
	if n := len(r.stored()); n != 6 {
		t.Errorf("%d messages are stored, want 6", n)
	}
}

// TestStrangersBody is not read: who may not send is told so, and not "100 Continue",
// which the server says when it is about to read.
func TestStrangersBody(t *testing.T) {
	r := newRig(t, asIs)
	for _, path := range []string{batchPath, d1} {
		for _, header := range []string{"", "Authorization: Bearer wrong\r\n", "X-Tenant-ID: t1\r\nX-Device-ID: d1\r\nX-Provision-Token: wrong\r\n"} {
			conn, err := net.Dial("tcp", r.server.Listener.Addr().String())
			r.must(err)
			r.must(conn.SetDeadline(time.Now().Add(patience)))
			fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 1000\r\nExpect: 100-continue\r\n%s\r\n", path, header)
			res, err := http.ReadResponse(bufio.NewReader(conn), nil)
			if err != nil || res.StatusCode != http.StatusUnauthorized {
				t.Errorf("%s %q: %v %v", path, header, res, err)
			}
			r.must(conn.Close())
		}
	}
}

// TestDocument: what the OpenAPI document says of bodies, answers and security.
func TestDocument(t *testing.T) {
	r := newRig(t, asIs)
	for path, want := range map[string][]string{
		"/ingest/v1/tenant/{tenant}/device/{device}/{msg_type}": {`"additionalProperties":true`},
		batchPath: {`"messages":{"items":{"$ref":"#/components/schemas/BatchItem"},"maxItems":500,"minItems":1,"type":"array"}`, `"additionalProperties":false`},
	} {
		op := r.api.OpenAPI().Paths[path].Post
		schema, err := json.Marshal(op.RequestBody.Content["application/json"].Schema)
		r.must(err)
		for _, part := range want {
			if !strings.Contains(string(schema), part) {
				t.Errorf("%s: %s lacks %s", path, schema, part)
			}
		}
		if len(op.Security) != 2 || op.Responses["401"].Headers["WWW-Authenticate"] == nil || op.Responses["429"].Headers["Retry-After"] == nil {
			t.Errorf("%s: %v %v", path, op.Security, op.Responses)
		}
		for _, status := range []string{"400", "401", "403", "408", "413", "415", "422", "429", "503"} {
			if res := op.Responses[status]; res == nil || res.Content["application/problem+json"] == nil {
				t.Errorf("%s: %s is no problem", path, status)
			}
		}
		for _, p := range op.Parameters {
			if p.Name == "Authorization" {
				t.Errorf("%s: Authorization is a parameter", path)
			}
		}
	}
	all, some := r.api.OpenAPI().Paths[batchPath].Post.Responses["202"], r.api.OpenAPI().Paths[batchPath].Post.Responses["207"]
	if some == nil || some.Content["application/json"] == nil || some.Content["application/json"].Schema.Ref != all.Content["application/json"].Schema.Ref {
		t.Errorf("207: %+v", some)
	}
}
