package ingest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"reflect"
	"strconv"

	"github.com/danielgtaylor/huma/v2"

	"github.com/crossfade-io/crossfade/jetstream"
	"github.com/crossfade-io/crossfade/pipeline"
)

// BatchItem is one message of a batch, as the OpenAPI document describes it.
type BatchItem struct {
	Tenant  string         `json:"tenant_id"`
	Device  string         `json:"device_id"`
	MsgType string         `json:"msg_type" doc:"telemetry, heartbeat or another word: one level of a topic."`
	Token   string         `json:"provision_token,omitempty" doc:"The device's token; X-Provision-Token if absent. Put into the payload where that has no provision_token."`
	Payload map[string]any `json:"payload" doc:"As over MQTT."`
}

// ItemResult is what became of a message.
type ItemResult struct {
	Index  int    `json:"index" doc:"Its place in the batch, from 0."`
	Status int    `json:"status" doc:"As for a single message: 202 stored; 429 or 503 send it again; others: do not."`
	Error  string `json:"error,omitempty"`
}

// BatchResult is what became of a batch.
type BatchResult struct {
	Accepted int          `json:"accepted"`
	Rejected int          `json:"rejected"`
	Results  []ItemResult `json:"results" nullable:"false"`
}

type batchInput struct {
	Tenant  string `header:"X-Tenant-ID" doc:"The sender's tenant, where it is a device."`
	Device  string `header:"X-Device-ID" doc:"The sender, where it is a device."`
	Token   string `header:"X-Provision-Token" doc:"The token of a device that sends, and of the messages that name none."`
	RawBody []byte `contentType:"application/json"`
}

type batchOutput struct {
	Status     int
	RetryAfter string `header:"Retry-After" doc:"In seconds, where messages are to be sent again."`
	Body       BatchResult
}

func (s *service) registerBatch() {
	type body struct {
		Messages []BatchItem `json:"messages"`
	}
	op := huma.Operation{
		OperationID: "ingest-batch", Method: http.MethodPost, Path: "/ingest/v1/batch",
		Summary: "Send many messages",
		Description: fmt.Sprintf("At most %d messages of %d bytes each, of one device or, with a bearer token, of a gateway's devices. They are stored in their order, and each counts towards the sender's rate. 202: all are stored. 207: not all are; each has a result of its own. Any other status is of the request as a whole, and nothing is stored.",
			s.options.MaxBatch, s.options.MaxBody),
		Tags: []string{"Ingest"}, Security: security, DefaultStatus: http.StatusAccepted,
		Errors: []int{http.StatusBadRequest, http.StatusUnauthorized, http.StatusForbidden, http.StatusRequestTimeout, http.StatusRequestEntityTooLarge,
			http.StatusUnsupportedMediaType, http.StatusTooManyRequests, http.StatusServiceUnavailable},
		MaxBodyBytes: int64(s.options.MaxBatchBody) + 1, BodyReadTimeout: bodyPatience,
		SkipValidateBody: true,
		RequestBody:      &huma.RequestBody{},
		Responses:        map[string]*huma.Response{},
		Middlewares:      huma.Middlewares{s.admitBatch},
	}
	huma.Register(s.api, op, s.batch)
	documentHeaders(&op)
	all := op.Responses["202"]
	op.Responses["207"] = &huma.Response{Description: "Not all are stored", Headers: all.Headers, Content: all.Content}
	schema := huma.SchemaFromType(s.api.OpenAPI().Components.Schemas, reflect.TypeFor[body]())
	messages, least := schema.Properties["messages"], 1
	messages.Nullable, messages.MinItems, messages.MaxItems = false, &least, &s.options.MaxBatch
	op.RequestBody.Required = true
	op.RequestBody.Content["application/json"].Schema = schema
}

// sender is who sends a batch.
type sender struct {
	gateway string // a gateway's bearer token
	tenant  string // that the gateway is for; "" for all
	device  *pipeline.DeviceKey
}

type senderKey struct{}

// admitBatch looks at who sends before it reads what.
func (s *service) admitBatch(ctx huma.Context, next func(huma.Context)) {
	from, err := s.sender(ctx)
	if err != nil {
		s.refuse(ctx, err)
		return
	}
	s.admitBody(huma.WithValue(ctx, senderKey{}, from), next)
}

func (s *service) sender(ctx huma.Context) (*sender, error) {
	if secret, ok := bearer(ctx.Header("Authorization")); ok {
		tenant, err := s.options.Authenticator.Gateway(ctx.Context(), secret, scopeIngest)
		if err != nil {
			return nil, s.denied(ctx.Context(), err)
		}
		return &sender{gateway: secret, tenant: tenant}, nil
	}
	key := pipeline.DeviceKey{Tenant: ctx.Header(headerTenant), Device: ctx.Header(headerDevice)}
	if err := s.allow(ctx.Context(), key, "", ctx.Header(headerToken)); err != nil {
		return nil, err
	}
	return &sender{device: &key}, nil
}

// may returns nil if the sender may send in the device's name.
func (from *sender) may(key pipeline.DeviceKey) error {
	switch {
	case from.device != nil && *from.device != key:
		return huma.Error403Forbidden("the message is not of the device that sends it; only a gateway sends for others")
	case from.device == nil && from.tenant != "" && from.tenant != key.Tenant:
		return huma.Error403Forbidden("the token is not for this tenant")
	}
	return nil
}

// count is how many of n messages the sender may send now, of which the first was
// counted when the sender was let in; err is for the others.
func (s *service) count(ctx context.Context, from *sender, n int) (taken int, err error) {
	switch {
	case n == 1:
		return 1, nil
	case from.device != nil:
		taken, err = s.options.Authenticator.MoreOfDevice(from.device.Tenant, from.device.Device, n-1)
	default:
		taken, err = s.options.Authenticator.MoreOfGateway(ctx, from.gateway, n-1)
	}
	if err != nil {
		err = s.denied(ctx, err)
	}
	return 1 + taken, err
}

func (s *service) batch(ctx context.Context, in *batchInput) (*batchOutput, error) {
	from, ok := ctx.Value(senderKey{}).(*sender)
	if !ok {
		return nil, s.denied(ctx, ErrUnauthorized)
	}
	items, err := readBatch(in.RawBody, s.options.MaxBatch)
	switch {
	case errors.Is(err, errTooMany):
		return nil, huma.Error413RequestEntityTooLarge(fmt.Sprintf("the batch has more than %d messages", s.options.MaxBatch))
	case err != nil:
		return nil, huma.Error400BadRequest("the body is no batch: " + err.Error())
	case len(in.Token) > maxToken:
		return nil, huma.Error422UnprocessableEntity(headerToken + " is too long")
	}
	taken, over := s.count(ctx, from, len(items))
	results := make([]error, len(items))
	messages := make([]jetstream.IngestMessage, 0, len(items))
	places := make([]int, 0, len(items)) // of the messages in the batch
	var r itemReader
	for i, raw := range items {
		if i >= taken {
			results[i] = over
			continue
		}
		m, err := s.open(&r, from, raw, in.Token)
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

// open makes a message of what the sender has written; the token is the request's.
func (s *service) open(r *itemReader, from *sender, raw json.RawMessage, token string) (m jetstream.IngestMessage, err error) {
	if len(raw) > s.options.MaxBody {
		return m, huma.Error413RequestEntityTooLarge(fmt.Sprintf("the message is larger than %d bytes", s.options.MaxBody))
	}
	it, err := r.read(raw)
	if err != nil {
		return m, err
	}
	key := pipeline.DeviceKey{Tenant: it.tenant, Device: it.device}
	if err := from.may(key); err != nil {
		return m, err
	}
	if it.token != "" {
		token = it.token
	}
	if len(token) > maxToken {
		return m, wrong(memberToken, "is too long")
	}
	m, location, why := compose(&r.payload, key, it.msgType, token, it.payload)
	if why != "" {
		return m, wrong(location, why)
	}
	return m, nil
}

// sum makes the answer to a batch.
func sum(results []error) *batchOutput {
	out := &batchOutput{Status: http.StatusAccepted}
	wait := 0
	for i, err := range results {
		r := ItemResult{Index: i, Status: statusOf(err)}
		if err == nil {
			out.Body.Accepted++
		} else {
			out.Status = http.StatusMultiStatus
			out.Body.Rejected++
			r.Error = detailOf(err)
		}
		wait = max(wait, waitOf(err))
		out.Body.Results = append(out.Body.Results, r)
	}
	if wait > 0 {
		out.RetryAfter = strconv.Itoa(wait)
	}
	return out
}
