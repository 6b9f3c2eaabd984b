package api

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"slices"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/crossfade-io/crossfade/jetstream"
	"github.com/crossfade-io/crossfade/pipeline"
)

// Publisher takes what a device says.
type Publisher interface {
	// Publish returns nil once JetStream has stored the message for the pipeline. It
	// may be called concurrently, blocks until then or until ctx ends, and does not
	// keep the payload. A [*jetstream.RefusedError] means that it will never be stored,
	// any other that it may not be: the device is asked to send it again, and the
	// ledger takes the repeat for one.
	Publish(ctx context.Context, tenant, device, msgType string, payload []byte) error
}

// What a device asks, and what it is told. Its message is held against what the
// pipeline would refuse in any case, so that it hears of a mistake; the rest of the
// checks (subscription, size) is the pipeline's, and quarantines.

// Identity names the device that calls.
type Identity struct {
	Tenant string `header:"X-Tenant-ID" required:"true" doc:"The device's tenant."`
	Device string `header:"X-Device-ID" required:"true" doc:"The device's ID."`
}

type deviceShadowInput struct {
	Identity
	IfNoneMatch string `header:"If-None-Match" doc:"Entity tag of the version that the device has: 304 if there is no other."`
}

type acceptedOutput struct{}

func (s *Server) registerDevice() {
	const path = "/device/v1"
	register(s, operation{
		id: "device-get-shadow", method: http.MethodGet, path: path + "/shadow",
		summary: "Read what is wanted of this device", description: "The desired state and its version; an empty object if nothing is wanted. 304 if If-None-Match names the version.",
	}, s.deviceShadow)
	register(s, operation{
		id: "device-post-reported", method: http.MethodPost, path: path + "/shadow/reported", status: http.StatusAccepted,
		summary:     "Report this device's state",
		description: "As on the MQTT topic shadow/reported. 202: it is stored and will be looked at. It counts only if its version is at least that of the report before.",
		body:        reportedSchema(),
	}, s.deviceReported)
	register(s, operation{
		id: "device-list-pending", method: http.MethodGet, path: path + "/commands/pending",
		summary: "List what this device is to do", description: "Commands that are queued and not expired, oldest first. They stay until they are acknowledged.",
	}, s.devicePending)
	register(s, operation{
		id: "device-ack-command", method: http.MethodPost, path: path + "/commands/{id}/ack", status: http.StatusAccepted,
		summary:     "Acknowledge a command",
		description: "As on the MQTT topic commands/ack. 202: it is stored and will take effect if the command is queued.",
		body:        ackSchema(), optionalBody: true,
	}, s.deviceAck)
}

func (s *Server) deviceShadow(ctx context.Context, in *deviceShadowInput) (*desiredOutput, error) {
	sh, err := s.readShadow(ctx, in.Tenant, in.Device)
	if err != nil {
		return nil, shadowProblem(ctx, "read a shadow", err)
	}
	if noneMatch(in.IfNoneMatch, sh.version) {
		return nil, withHeader(huma.Status304NotModified(), "Etag", etag(sh.version))
	}
	return &desiredOutput{ETag: etag(sh.version), Body: Desired{sh.desired, sh.version}}, nil
}

type reportedInput struct {
	Identity
	RawBody []byte `contentType:"application/json"`
}

func (s *Server) deviceReported(ctx context.Context, in *reportedInput) (*acceptedOutput, error) {
	members, err := readBody(in.RawBody)
	if err != nil {
		return nil, err
	}
	if members["reported"].value.IsNull() {
		return nil, wrong("reported", "must be an object")
	}
	if _, err := object(members, "reported"); err != nil {
		return nil, err
	}
	if v := members["version"].value; !v.IsNull() {
		if _, ok := v.Int(); !ok {
			return nil, wrong("version", "must be a whole number")
		}
	}
	return s.publish(ctx, in.Identity, "shadow/reported", members, slices.Clone(in.RawBody))
}

// PendingCommand is a command as a device sees it, the same as over MQTT.
type PendingCommand struct {
	ID        string          `json:"command_id"`
	Type      string          `json:"type"`
	Params    json.RawMessage `json:"params" doc:"An object."`
	ExpiresAt *time.Time      `json:"expires_at"`
}

type pendingInput struct {
	Identity
	Limit int `query:"limit" minimum:"1" maximum:"50" default:"20"`
}

type pendingOutput struct {
	Body struct {
		Commands []PendingCommand `json:"commands" nullable:"false"`
		Cut      bool             `json:"cut,omitempty" doc:"There are more, but the list would be larger than 1 MiB: ask again when some are acknowledged."`
	}
}

func (s *Server) devicePending(ctx context.Context, in *pendingInput) (*pendingOutput, error) {
	list, cut, err := s.commands(ctx, listPending, in.Tenant, in.Device, "queued", in.Limit)
	if err != nil {
		return nil, shadowProblem(ctx, "list pending commands", err)
	}
	out := &pendingOutput{}
	out.Body.Commands, out.Body.Cut = make([]PendingCommand, len(list)), cut
	for i, c := range list {
		out.Body.Commands[i] = PendingCommand{c.ID, c.Type, c.Params, c.ExpiresAt}
	}
	return out, nil
}

type ackInput struct {
	Identity
	ID      string `path:"id"`
	RawBody []byte `contentType:"application/json"`
}

// deviceAck sends what the device has said, with the command's ID from the path.
func (s *Server) deviceAck(ctx context.Context, in *ackInput) (*acceptedOutput, error) {
	if !storable(in.ID) {
		return nil, problem(http.StatusNotFound, "the device has no such command")
	}
	raw := in.RawBody
	if len(raw) == 0 {
		raw = []byte("{}")
	}
	members, err := readBody(raw)
	if err != nil {
		return nil, err
	}
	if id := members["command_id"].value; !id.IsNull() {
		if given, _ := id.Text(); given != in.ID {
			return nil, wrong("command_id", "is not that of the path; leave it out")
		}
	}
	if _, err := text(members, "status", maxType); err != nil {
		return nil, err
	}
	if _, err := object(members, "details"); err != nil {
		return nil, err
	}
	fields := make(map[string]json.RawMessage, len(members)+1)
	for name, m := range members {
		fields[name] = m.raw
	}
	if fields["command_id"], err = json.Marshal(in.ID); err != nil {
		return nil, broken(ctx, "write an acknowledgement", err)
	}
	payload, err := json.Marshal(fields)
	if err != nil {
		return nil, broken(ctx, "write an acknowledgement", err)
	}
	return s.publish(ctx, in.Identity, "commands/ack", members, payload)
}

// publish hands a message to the pipeline's stream.
func (s *Server) publish(ctx context.Context, from Identity, msgType string, members map[string]member, payload []byte) (*acceptedOutput, error) {
	if v := members["tenant_id"].value; !v.IsNull() {
		if tenant, _ := v.Text(); tenant != from.Tenant {
			return nil, wrong("tenant_id", "is not the device's tenant")
		}
	}
	// A name that no topic can hold may be in the registry all the same.
	topic, ok := pipeline.ParseTopic("tenant/" + from.Tenant + "/device/" + from.Device + "/" + msgType)
	if !ok || topic.Tenant != from.Tenant || topic.Device != from.Device || topic.MsgType != msgType || topic.Kind.Ignored() {
		return nil, problem(http.StatusUnprocessableEntity, "tenant or device has a name that no topic can hold, so nothing can be sent in its name")
	}
	if s.publisher == nil {
		return nil, problem(http.StatusServiceUnavailable, "this installation takes no messages by HTTP: NATS JetStream is not set up")
	}
	err := s.publisher.Publish(ctx, from.Tenant, from.Device, msgType, payload)
	if refused, ok := errors.AsType[*jetstream.RefusedError](err); ok {
		return nil, problem(http.StatusUnprocessableEntity, "%v", refused)
	}
	if err != nil {
		return nil, unavailable(ctx, "publish "+msgType, err)
	}
	return nil, nil
}

func commandPath(tenant, device, id string) string {
	return "/v1/tenants/" + url.PathEscape(tenant) + "/devices/" + url.PathEscape(device) + "/commands/" + url.PathEscape(id)
}

func reportedSchema() *huma.Schema {
	s := objectSchema("reported", "The device's state.")
	s.AdditionalProperties = true
	s.Properties["version"] = &huma.Schema{Type: huma.TypeInteger, Format: "int64", Description: "Grows with each report; 0 if absent."}
	return s
}

func ackSchema() *huma.Schema {
	s := objectSchema("details", "What came of it.")
	s.Required, s.AdditionalProperties = nil, true
	s.Properties["status"] = &huma.Schema{Type: huma.TypeString, Description: "ok if absent."}
	return s
}
