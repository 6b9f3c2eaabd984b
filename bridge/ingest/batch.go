package ingest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"reflect"

	"github.com/danielgtaylor/huma/v2"

	"github.com/crossfade-io/crossfade/jetstream"
	"github.com/crossfade-io/crossfade/pipeline"
	"github.com/crossfade-io/crossfade/pipeline/canonical"
)

// BatchItem is one message of a batch, as the OpenAPI document describes it.
type BatchItem struct {
	Tenant  string         `json:"tenant_id"`
	Device  string         `json:"device_id"`
	MsgType string         `json:"msg_type" doc:"telemetry, heartbeat or another word: one level of a topic."`
	Token   string         `json:"provision_token,omitempty" doc:"The device's token; X-Provision-Token if absent. Put into the payload where that has no provision_token."`
	Payload map[string]any `json:"payload" doc:"As over MQTT."`
}

// item is a BatchItem as it is read.
type item struct {
	tenant, device, msgType, token string
	payload                        json.RawMessage
}

// ItemResult is what became of a message.
type ItemResult struct {
	Index  int    `json:"index" doc:"Its place in the batch, from 0."`
	Status int    `json:"status" doc:"As for a single message: 202 stored; 503 send it again; others: do not."`
	Error  string `json:"error,omitempty"`
}

// BatchResult is what became of a batch.
type BatchResult struct {
	Accepted int          `json:"accepted"`
	Rejected int          `json:"rejected"`
	Results  []ItemResult `json:"results"`
}

type batchInput struct {
	Authorization string `header:"Authorization"`
	Token         string `header:"X-Provision-Token"`
	RawBody       []byte `contentType:"application/json"`
}

type batchOutput struct {
	Status     int
	RetryAfter string `header:"Retry-After"`
	Body       BatchResult
}

func (s *service) registerBatch() {
	type body struct {
		Messages []BatchItem `json:"messages"`
	}
	op := huma.Operation{
		OperationID: "ingest-batch", Method: http.MethodPost, Path: "/ingest/v1/batch",
		Summary: "Send messages of many devices",
		Description: fmt.Sprintf("At most %d messages. They are stored in their order, and each has a result of its own. The status is the one that all results share, and 207 where they differ. Without a bearer token each message is authenticated by its device's token.",
			s.options.MaxBatch),
		Tags: []string{"Ingest"}, Security: security, DefaultStatus: http.StatusAccepted,
		Errors: []int{http.StatusBadRequest, http.StatusUnauthorized, http.StatusForbidden, http.StatusRequestEntityTooLarge,
			http.StatusUnsupportedMediaType, http.StatusTooManyRequests, http.StatusServiceUnavailable},
		MaxBodyBytes: int64(s.options.MaxBatchBody) + 1, BodyReadTimeout: bodyPatience,
		SkipValidateBody: true,
		RequestBody:      &huma.RequestBody{},
		Middlewares: huma.Middlewares{func(ctx huma.Context, next func(huma.Context)) {
			if !plainJSON(ctx) {
				s.refuse(ctx, huma.Error415UnsupportedMediaType("send the body as application/json, not compressed"))
				return
			}
			next(ctx)
		}},
	}
	huma.Register(s.api, op, s.batch)
	op.RequestBody.Required = true
	op.RequestBody.Content["application/json"].Schema = huma.SchemaFromType(s.api.OpenAPI().Components.Schemas, reflect.TypeFor[body]())
}

func (s *service) batch(ctx context.Context, in *batchInput) (*batchOutput, error) {
	items, err := readBatch(in.RawBody)
	switch {
	case err != nil:
		return nil, huma.Error400BadRequest("the body is no batch: " + err.Error())
	case len(items) > s.options.MaxBatch:
		return nil, huma.Error413RequestEntityTooLarge(fmt.Sprintf("the batch has %d messages; send at most %d", len(items), s.options.MaxBatch))
	}
	results := make([]error, len(items))
	var messages []jetstream.IngestMessage
	var places []int // of the messages in the batch
	gate := batchGate{service: s, authorization: in.Authorization, known: make(map[batchCaller]error)}
	var doc canonical.Doc
	for i := range items {
		m, err := gate.open(ctx, &doc, &items[i], in.Token)
		if results[i] = err; err == nil {
			messages, places = append(messages, m), append(places, i)
		}
	}
	if len(messages) > 0 {
		for n, err := range s.options.Publisher.PublishAll(ctx, messages) {
			results[places[n]] = s.published(ctx, err)
		}
	}
	return sum(results), nil
}

// readBatch takes a batch apart, as far as it is one. Names are case-sensitive.
func readBatch(raw []byte) ([]item, error) {
	var body map[string]json.RawMessage
	if err := json.Unmarshal(raw, &body); err != nil {
		return nil, errors.New("it is not a JSON object")
	}
	var list []map[string]json.RawMessage
	if given := body["messages"]; given == nil || json.Unmarshal(given, &list) != nil {
		return nil, errors.New("messages is no list of objects")
	}
	if len(list) == 0 {
		return nil, errors.New("messages is empty")
	}
	items := make([]item, len(list))
	for i, members := range list {
		it := &items[i]
		it.payload = members["payload"]
		for name, into := range map[string]*string{"tenant_id": &it.tenant, "device_id": &it.device, "msg_type": &it.msgType, memberToken: &it.token} {
			if given, ok := members[name]; ok && json.Unmarshal(given, into) != nil {
				return nil, fmt.Errorf("messages[%d].%s is no text", i, name)
			}
		}
	}
	return items, nil
}

// batchGate lets the messages of a batch in. It asks once for each caller.
type batchGate struct {
	*service
	authorization string
	known         map[batchCaller]error
}

type batchCaller struct {
	pipeline.DeviceKey
	token string
}

// open authenticates a message and makes it; the token is the request's.
func (g *batchGate) open(ctx context.Context, doc *canonical.Doc, it *item, token string) (jetstream.IngestMessage, error) {
	if it.token != "" {
		token = it.token
	}
	key := pipeline.DeviceKey{Tenant: it.tenant, Device: it.device}
	caller := batchCaller{key, token}
	if _, ok := bearer(g.authorization); ok {
		caller = batchCaller{pipeline.DeviceKey{Tenant: it.tenant}, ""} // it is the same for all of a tenant's devices
	}
	err, asked := g.known[caller]
	if !asked {
		err = g.allow(ctx, caller.DeviceKey, g.authorization, token)
		g.known[caller] = err
	}
	if err != nil {
		return jetstream.IngestMessage{}, err
	}
	if len(token) > maxToken {
		return jetstream.IngestMessage{}, wrong(memberToken, "is too long")
	}
	m, location, why := compose(doc, key, it.msgType, token, it.payload)
	if why != "" {
		return m, wrong(location, why)
	}
	return m, nil
}

// sum makes the answer to a batch.
func sum(results []error) *batchOutput {
	out := &batchOutput{Status: statusOf(results[0])}
	for i, err := range results {
		r := ItemResult{Index: i, Status: statusOf(err)}
		if err == nil {
			out.Body.Accepted++
		} else {
			out.Body.Rejected++
			r.Error = detailOf(err)
		}
		if r.Status == http.StatusServiceUnavailable || r.Status == http.StatusTooManyRequests {
			out.RetryAfter = retryAfter
		}
		if r.Status != out.Status {
			out.Status = http.StatusMultiStatus
		}
		out.Body.Results = append(out.Body.Results, r)
	}
	return out
}
