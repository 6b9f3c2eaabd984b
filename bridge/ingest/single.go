package ingest

import (
	"context"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/crossfade-io/crossfade/jetstream"
	"github.com/crossfade-io/crossfade/pipeline"
	"github.com/crossfade-io/crossfade/pipeline/canonical"
)

// scopeIngest is what a bearer token needs.
const scopeIngest = "ingest"

const (
	headerToken  = "X-Provision-Token"
	headerTenant = "X-Tenant-ID"
	headerDevice = "X-Device-ID"
)

// bodyPatience is how long a client may take to send a body.
const bodyPatience = 10 * time.Second

// Register adds the operations to an API.
func Register(api huma.API, o Options) error {
	if err := o.Validate(); err != nil {
		return err
	}
	s := &service{api: api, options: o}
	s.registerSingle()
	s.registerBatch()
	return nil
}

// security is either of the schemes bearer and provisionToken of package api.
var security = []map[string][]string{{"bearer": {}}, {"provisionToken": {}}}

type singleInput struct {
	Tenant  string `path:"tenant"`
	Device  string `path:"device"`
	MsgType string `path:"msg_type" doc:"telemetry, heartbeat or another word: one level of a topic."`
	Token   string `header:"X-Provision-Token" doc:"The device's token. Put into the payload where that has no provision_token."`
	RawBody []byte `contentType:"application/json"`
}

// Accepted says that the stream has the message.
type Accepted struct {
	Status string `json:"status" enum:"accepted"`
}

type singleOutput struct{ Body Accepted }

func (s *service) registerSingle() {
	op := huma.Operation{
		OperationID: "ingest-message", Method: http.MethodPost, Path: "/ingest/v1/tenant/{tenant}/device/{device}/{msg_type}",
		Summary:     "Send a message in a device's name",
		Description: "The body is the payload, as over MQTT. 202: it is stored and will be checked; what fails the checks is in quarantine. 503: send it again. A bearer token needs the scope `ingest`; the pipeline demands the device's token besides.",
		Tags:        []string{"Ingest"}, Security: security, DefaultStatus: http.StatusAccepted,
		Errors: []int{http.StatusBadRequest, http.StatusUnauthorized, http.StatusForbidden, http.StatusRequestTimeout, http.StatusRequestEntityTooLarge,
			http.StatusUnsupportedMediaType, http.StatusUnprocessableEntity, http.StatusTooManyRequests, http.StatusServiceUnavailable},
		MaxBodyBytes: int64(s.options.MaxBody) + 1, BodyReadTimeout: bodyPatience, // at the limit itself huma refuses
		SkipValidateBody: true,
		RequestBody:      &huma.RequestBody{},
		Responses:        map[string]*huma.Response{},
		Middlewares:      huma.Middlewares{s.admitSingle},
	}
	huma.Register(s.api, op, s.single)
	documentHeaders(&op)
	op.RequestBody.Required = true
	op.RequestBody.Content["application/json"].Schema = &huma.Schema{Type: huma.TypeObject, AdditionalProperties: true}
}

// documentHeaders adds the headers of refusals to the document.
func documentHeaders(op *huma.Operation) {
	op.Responses["401"].Headers = map[string]*huma.Param{"WWW-Authenticate": {Description: "What is missing.", Schema: &huma.Schema{Type: huma.TypeString}}}
	for _, status := range []string{"429", "503"} {
		op.Responses[status].Headers = map[string]*huma.Param{"Retry-After": {Description: "In seconds.", Schema: &huma.Schema{Type: huma.TypeInteger}}}
	}
}

// admitSingle looks at who sends before it reads what.
func (s *service) admitSingle(ctx huma.Context, next func(huma.Context)) {
	key := pipeline.DeviceKey{Tenant: ctx.Param("tenant"), Device: ctx.Param("device")}
	if err := s.allow(ctx.Context(), key, ctx.Header("Authorization"), ctx.Header(headerToken)); err != nil {
		s.refuse(ctx, err)
		return
	}
	s.admitBody(ctx, next)
}

// admitBody refuses bodies that cannot be read as JSON.
func (s *service) admitBody(ctx huma.Context, next func(huma.Context)) {
	if !plainJSON(ctx) {
		s.refuse(ctx, huma.Error415UnsupportedMediaType("send the body as application/json, not compressed"))
		return
	}
	next(ctx)
}

// allow decides about one device: by the bearer token where there is one, else by the
// device's.
func (s *service) allow(ctx context.Context, key pipeline.DeviceKey, authorization, token string) error {
	if secret, ok := bearer(authorization); ok {
		if err := s.options.Authenticator.Bearer(ctx, secret, scopeIngest, key.Tenant); err != nil {
			return s.denied(ctx, err)
		}
		return nil
	}
	err := s.options.Authenticator.Device(ctx, key.Tenant, key.Device, token)
	if err == nil {
		return nil
	}
	answer := s.denied(ctx, err)
	if s.options.Unregistered == nil || statusOf(answer) != http.StatusUnauthorized {
		return answer
	}
	switch unknown, err := s.options.Unregistered(ctx, key.Tenant, key.Device); {
	case err != nil:
		return s.unavailable(ctx, err)
	case unknown:
		return nil
	}
	return answer
}

func (s *service) single(ctx context.Context, in *singleInput) (*singleOutput, error) {
	if len(in.Token) > maxToken {
		return nil, huma.Error422UnprocessableEntity(headerToken + " is too long")
	}
	m, location, why := compose(new(canonical.Doc), pipeline.DeviceKey{Tenant: in.Tenant, Device: in.Device}, in.MsgType, in.Token, in.RawBody)
	if why != "" {
		return nil, wrong(location, why)
	}
	if err := s.published(ctx, s.options.Publisher.PublishAll(ctx, []jetstream.IngestMessage{m})[0]); err != nil {
		return nil, err
	}
	return &singleOutput{Accepted{"accepted"}}, nil
}

// wrong answers a message that can be none.
func wrong(location, why string) error {
	text := why
	if location != "" {
		text = location + " " + why
	}
	return huma.Error422UnprocessableEntity("this is no message: "+text, &huma.ErrorDetail{Location: location, Message: why})
}
