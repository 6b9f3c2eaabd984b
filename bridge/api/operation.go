package api

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/danielgtaylor/huma/v2"
)

// Names of the security schemes in the OpenAPI document. Operations that others add
// use them too.
const (
	SecurityBearer = "bearer"
	SecurityDevice = "provisionToken"
)

// The devices' headers. A token does not name its device.
const (
	headerTenant = "X-Tenant-ID"
	headerDevice = "X-Device-ID"
	headerToken  = "X-Provision-Token"
)

// document is what the OpenAPI document says of the API as a whole.
func document(version string) huma.Config {
	c := huma.DefaultConfig("Crossfade", version)
	// No pages that load scripts from elsewhere, no $schema links in answers.
	c.DocsPath, c.SchemasPath, c.CreateHooks = "", "", nil
	c.OpenAPIPath = "" // huma's own handlers write a variable without a lock
	c.Info.Description = "Desired states and commands for devices, and what devices say over HTTP. Whatever goes wrong is answered as application/problem+json."
	c.Components.SecuritySchemes = map[string]*huma.SecurityScheme{
		SecurityBearer: {Type: "http", Scheme: "bearer", Description: "A token of `crossfade token create`."},
		SecurityDevice: {Type: "apiKey", In: "header", Name: headerToken, Description: "The device's provisioning token; X-Tenant-ID and X-Device-ID name the device."},
	}
	return c
}

// serveDocument serves the OpenAPI document, for whoever asks, as it is now that every
// operation is registered.
func (s *Server) serveDocument() error {
	asJSON, err := json.Marshal(s.huma.OpenAPI())
	if err != nil {
		return fmt.Errorf("API: write the OpenAPI document: %w", err)
	}
	asYAML, err := s.huma.OpenAPI().YAML()
	if err != nil {
		return fmt.Errorf("API: write the OpenAPI document: %w", err)
	}
	serve := func(path, contentType string, body []byte) {
		s.mux.HandleFunc("GET "+path, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", contentType)
			_, _ = w.Write(body) // a client that went away needs no answer
		})
	}
	serve("/openapi.json", "application/openapi+json", asJSON)
	serve("/openapi.yaml", "application/openapi+yaml", asYAML)
	return nil
}

// operation describes one operation.
type operation struct {
	id, method, path, summary, description string
	scopes                                 []string // of a back end; nil: a device's
	status                                 int      // of success; 0: 200
	errors                                 []int    // besides those that all have
	body                                   *huma.Schema
	optionalBody                           bool
}

// register adds an operation. Who calls is looked at before anything of the request
// is read but its header.
func register[I, O any](s *Server, o operation, handler func(context.Context, *I) (*O, error)) {
	op := huma.Operation{
		OperationID: o.id, Method: o.method, Path: o.path, Summary: o.summary, Description: o.description, DefaultStatus: o.status,
		RejectUnknownQueryParameters: true,
		Errors: append([]int{http.StatusBadRequest, http.StatusUnauthorized, http.StatusForbidden, http.StatusNotFound,
			http.StatusTooManyRequests, http.StatusServiceUnavailable}, o.errors...),
	}
	if o.scopes != nil {
		op.Tags, op.Security = []string{"Back end"}, []map[string][]string{{SecurityBearer: {}}}
		op.Description += "\n\nThe token needs the scope " + either(o.scopes) + "."
		op.Middlewares = huma.Middlewares{s.admitBackend(o.scopes)}
	} else {
		op.Tags, op.Security = []string{"Device"}, []map[string][]string{{SecurityDevice: {}}}
		op.Middlewares = huma.Middlewares{s.admitDevice}
	}
	if o.body != nil {
		op.RequestBody = &huma.RequestBody{}
		op.MaxBodyBytes, op.BodyReadTimeout = MaxBody+1, 10*time.Second // at the limit itself huma refuses
		op.SkipValidateBody = true                                      // readBody is stricter
		op.Errors = append(op.Errors, http.StatusRequestTimeout, http.StatusRequestEntityTooLarge, http.StatusUnsupportedMediaType)
	}
	op.Responses = map[string]*huma.Response{}
	huma.Register(s.huma, op, handler)
	op.Responses[strconv.Itoa(http.StatusUnauthorized)].Headers = map[string]*huma.Param{
		"WWW-Authenticate": {Description: "What is missing.", Schema: &huma.Schema{Type: huma.TypeString}}}
	if o.body != nil {
		op.RequestBody.Required = !o.optionalBody
		op.RequestBody.Content["application/json"].Schema = o.body // huma took it for bytes
	}
}

func either(scopes []string) string {
	text := "`" + scopes[0] + "`"
	for _, s := range scopes[1:] {
		text += " or `" + s + "`"
	}
	return text
}

func (s *Server) admitBackend(scopes []string) func(huma.Context, func(huma.Context)) {
	return func(ctx huma.Context, next func(huma.Context)) {
		t, err := s.auth.bearer(ctx.Context(), bearerSecret(ctx.Header("Authorization")), ctx.Param("tenant"), scopes...)
		if err != nil {
			s.refuse(ctx, err)
			return
		}
		requestOf(ctx.Context()).caller = t.name
		s.admitBody(ctx, next)
	}
}

func (s *Server) admitDevice(ctx huma.Context, next func(huma.Context)) {
	if err := s.auth.Device(ctx.Context(), ctx.Header(headerTenant), ctx.Header(headerDevice), ctx.Header(headerToken)); err != nil {
		s.refuse(ctx, err)
		return
	}
	s.admitBody(ctx, next)
}

// admitBody refuses bodies that cannot be read as JSON.
func (s *Server) admitBody(ctx huma.Context, next func(huma.Context)) {
	encoding := ctx.Header("Content-Encoding")
	if ctx.Operation().RequestBody != nil && (!isJSON(ctx.Header("Content-Type")) || encoding != "" && encoding != "identity") {
		s.refuse(ctx, problem(http.StatusUnsupportedMediaType, "send the body as application/json, not compressed"))
		return
	}
	next(ctx)
}

// refuse answers with a problem from outside a handler.
func (s *Server) refuse(ctx huma.Context, err error) {
	r, w := unwrap(ctx)
	writeProblem(w, r, err)
}
