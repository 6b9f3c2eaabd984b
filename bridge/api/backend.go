package api

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"net/http"
	"regexp"
	"time"

	"github.com/danielgtaylor/huma/v2"
)

// What a back end asks, and what it is told. Embedded parts are exported since huma
// overlooks them otherwise.

// DeviceInput names a device.
type DeviceInput struct {
	Tenant string `path:"tenant"`
	Device string `path:"device"`
}

// DesiredInput names a device and the version of its desired state.
type DesiredInput struct {
	DeviceInput
	IfMatch string `header:"If-Match" doc:"Only if the desired state has this version: an entity tag, as \"7\". Without it, whatever the version."`
}

type putDesiredInput struct {
	DesiredInput
	RawBody []byte `contentType:"application/json"`
}

// Desired is a desired state with its version.
type Desired struct {
	Desired json.RawMessage `json:"desired" doc:"An object."`
	Version int64           `json:"version" doc:"Grows by one whenever the desired state changes."`
}

type desiredOutput struct {
	ETag string `header:"ETag"`
	Body Desired
}

// Shadow is all there is of a device's shadow.
type Shadow struct {
	Desired
	Reported        json.RawMessage `json:"reported" doc:"What the device reported last."`
	ReportedVersion int64           `json:"reported_version"`
	Updated         *time.Time      `json:"updated_at,omitempty" doc:"When either of the two was changed last."`
	Seen            *time.Time      `json:"last_seen_at,omitempty" doc:"Time of the device's latest message."`
}

type shadowOutput struct {
	ETag string `header:"ETag" doc:"Of the desired state, for If-Match."`
	Body Shadow
}

func (s *Server) registerBackend() {
	const path = "/v1/tenants/{tenant}/devices/{device}"
	register(s, operation{
		id: "put-desired", method: http.MethodPut, path: path + "/shadow/desired", scopes: []string{ScopeShadow},
		summary:     "Replace a device's desired state",
		description: "The device gets it as a retained MQTT message, once per version. The same state again changes nothing and keeps its version. An empty object is no desired state: the retained message is removed.",
		errors:      []int{http.StatusPreconditionFailed}, body: objectSchema("desired", "What is wanted of the device."),
	}, s.putDesired)
	register(s, operation{
		id: "delete-desired", method: http.MethodDelete, path: path + "/shadow/desired", scopes: []string{ScopeShadow},
		summary: "Clear a device's desired state", description: "The retained MQTT message is removed. The version goes on counting.",
		errors: []int{http.StatusPreconditionFailed},
	}, s.deleteDesired)
	register(s, operation{
		id: "get-shadow", method: http.MethodGet, path: path + "/shadow", scopes: []string{ScopeRead, ScopeShadow},
		summary: "Read a device's shadow", description: "What is wanted of the device, and what it has reported.",
	}, s.getShadow)
	register(s, operation{
		id: "post-command", method: http.MethodPost, path: path + "/commands", scopes: []string{ScopeCommands}, status: http.StatusCreated,
		summary:     "Queue a command for a device",
		description: "201 for a new command. With a `command_id` of your own the request may be repeated: 200 if there is that very command already, 409 if the ID is another's.",
		errors:      []int{http.StatusConflict}, body: commandSchema(),
	}, s.postCommand)
	register(s, operation{
		id: "list-commands", method: http.MethodGet, path: path + "/commands", scopes: []string{ScopeRead, ScopeCommands},
		summary: "List a device's commands", description: "Newest first. A list has 1 MiB of parameters and details at most, and says so if it is cut.",
	}, s.listCommands)
	register(s, operation{
		id: "get-command", method: http.MethodGet, path: path + "/commands/{id}", scopes: []string{ScopeRead, ScopeCommands},
		summary: "Read a command", description: "Its status, and what the device said of it.",
	}, s.getCommand)
}

func (s *Server) putDesired(ctx context.Context, in *putDesiredInput) (*desiredOutput, error) {
	members, err := readBody(in.RawBody, "desired")
	if err != nil {
		return nil, err
	}
	if members["desired"].value.IsNull() {
		return nil, wrong("desired", "must be an object")
	}
	state, err := object(members, "desired")
	if err != nil {
		return nil, err
	}
	return s.setDesired(ctx, &in.DesiredInput, state)
}

func (s *Server) deleteDesired(ctx context.Context, in *DesiredInput) (*desiredOutput, error) {
	return s.setDesired(ctx, in, "{}")
}

func (s *Server) setDesired(ctx context.Context, in *DesiredInput, state string) (*desiredOutput, error) {
	match, err := ifMatch(in.IfMatch)
	if err != nil {
		return nil, problem(http.StatusBadRequest, "%v", err)
	}
	sh, err := s.writeDesired(ctx, in.Tenant, in.Device, state, match)
	if errors.Is(err, errStale) {
		return nil, withHeader(problem(http.StatusPreconditionFailed, "the desired state has version %d; read it again before you replace it", sh.version), "Etag", etag(sh.version))
	}
	if err != nil {
		return nil, shadowProblem(ctx, "write a desired state", err)
	}
	return &desiredOutput{ETag: etag(sh.version), Body: Desired{sh.desired, sh.version}}, nil
}

func (s *Server) getShadow(ctx context.Context, in *DeviceInput) (*shadowOutput, error) {
	sh, err := s.readShadow(ctx, in.Tenant, in.Device)
	if err != nil {
		return nil, shadowProblem(ctx, "read a shadow", err)
	}
	return &shadowOutput{ETag: etag(sh.version), Body: Shadow{
		Desired: Desired{sh.desired, sh.version}, Reported: sh.reported, ReportedVersion: sh.reportedVersion, Updated: sh.updated, Seen: sh.seen}}, nil
}

func shadowProblem(ctx context.Context, operation string, err error) error {
	large, isLarge := errors.AsType[tooLargeError](err)
	switch {
	case errors.Is(err, errNotThere):
		return problem(http.StatusNotFound, "the tenant has no such device")
	case errors.Is(err, errRefused):
		return problem(http.StatusUnprocessableEntity, "the database cannot hold this")
	case isLarge:
		return problem(http.StatusRequestEntityTooLarge, "%v", large)
	}
	return databaseProblem(ctx, operation, err)
}

// Names of commands that are given here. They stand in paths, so anything that a
// proxy or client might rewrite is left out.
var commandID = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._:~-]{0,127}$`)

// Bounds of a command.
const (
	maxType = 128
	maxTTL  = 366 * 24 * 60 * 60 // seconds
)

type postCommandInput struct {
	DeviceInput
	RawBody []byte `contentType:"application/json"`
}

type commandOutput struct {
	Status   int
	Location string `header:"Location" doc:"Path of a new command."`
	Body     Command
}

func (s *Server) postCommand(ctx context.Context, in *postCommandInput) (*commandOutput, error) {
	n, err := readCommand(in.RawBody)
	if err != nil {
		return nil, err
	}
	n.by = "api:" + requestOf(ctx).caller
	c, made, err := s.queueCommand(ctx, in.Tenant, in.Device, n)
	switch {
	case errors.Is(err, errTaken):
		return nil, problem(http.StatusConflict, "there is a command with this command_id already, and it is not the same")
	case errors.Is(err, errLate):
		return nil, wrong("expires_at", "must be in the future")
	case err != nil:
		return nil, shadowProblem(ctx, "queue a command", err)
	case made:
		return &commandOutput{Status: http.StatusCreated, Location: commandPath(in.Tenant, in.Device, c.ID), Body: *c}, nil
	}
	return &commandOutput{Status: http.StatusOK, Body: *c}, nil
}

// readCommand reads the body of POST …/commands.
func readCommand(raw []byte) (n newCommand, err error) {
	members, err := readBody(raw, "command_id", "type", "params", "expires_at", "ttl_seconds")
	if err != nil {
		return n, err
	}
	if n.id, err = text(members, "command_id", 128); err != nil {
		return n, err
	}
	if members["command_id"].value.IsNull() {
		n.id = newID()
	} else if !commandID.MatchString(n.id) {
		return n, wrong("command_id", "must begin with a letter or digit and hold at most 128 of these and . _ : ~ -")
	}
	if n.kind, err = text(members, "type", maxType); err != nil {
		return n, err
	}
	if n.kind == "" {
		return n, wrong("type", "is missing")
	}
	if n.params, err = object(members, "params"); err != nil {
		return n, err
	}
	return n, readExpiry(members, &n)
}

func readExpiry(members map[string]member, n *newCommand) error {
	at, ttl := members["expires_at"].value, members["ttl_seconds"].value
	if !at.IsNull() && !ttl.IsNull() {
		return wrong("ttl_seconds", "and expires_at exclude each other; leave one out")
	}
	if !at.IsNull() {
		s, _ := at.Text()
		t, err := time.Parse(time.RFC3339, s)
		if err != nil || t.Year() < 1970 || t.Year() > 9999 {
			return wrong("expires_at", "must be a time as 2026-11-23T09:00:00Z (RFC 3339)")
		}
		t = t.Truncate(time.Microsecond) // as PostgreSQL keeps it
		n.expires = &t
	}
	if !ttl.IsNull() {
		f, ok := ttl.Float()
		seconds := int64(f)
		if !ok || f < 1 || f > maxTTL || float64(seconds) != f {
			return wrong("ttl_seconds", "must be a whole number from 1 to %d", maxTTL)
		}
		n.ttl = &seconds
	}
	return nil
}

// newID is a random UUID.
func newID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	h := hex.EncodeToString(b[:])
	return h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:]
}

type listInput struct {
	DeviceInput
	Status string `query:"status" enum:"queued,delivered,missed,expired" doc:"Only those of this status."`
	Limit  int    `query:"limit" minimum:"1" maximum:"100" default:"50"`
}

type listOutput struct {
	Body struct {
		Commands []Command `json:"commands" nullable:"false"`
		Cut      bool      `json:"cut,omitempty" doc:"The list ends early, since it would be larger than 1 MiB: ask with another status, or for one command by its ID."`
	}
}

func (s *Server) listCommands(ctx context.Context, in *listInput) (*listOutput, error) {
	list, cut, err := s.commands(ctx, listCommands, in.Tenant, in.Device, in.Status, in.Limit)
	if err != nil {
		return nil, shadowProblem(ctx, "list commands", err)
	}
	out := &listOutput{}
	out.Body.Commands, out.Body.Cut = list, cut
	return out, nil
}

type commandInput struct {
	DeviceInput
	ID string `path:"id"`
}

type oneCommandOutput struct{ Body Command }

func (s *Server) getCommand(ctx context.Context, in *commandInput) (*oneCommandOutput, error) {
	c, err := s.readCommand(ctx, in.Tenant, in.Device, in.ID)
	if errors.Is(err, errNotThere) {
		return nil, problem(http.StatusNotFound, "the device has no such command")
	}
	if err != nil {
		return nil, databaseProblem(ctx, "read a command", err)
	}
	return &oneCommandOutput{*c}, nil
}

// Schemas of bodies, for the document; readBody and its like hold bodies against them.

func objectSchema(name, doc string) *huma.Schema {
	return &huma.Schema{Type: huma.TypeObject, Required: []string{name}, AdditionalProperties: false,
		Properties: map[string]*huma.Schema{name: anyObject(doc)}}
}

func anyObject(doc string) *huma.Schema {
	return &huma.Schema{Type: huma.TypeObject, AdditionalProperties: true, Description: doc}
}

func commandSchema() *huma.Schema {
	s := objectSchema("params", "For the device; an empty object if absent.")
	s.Required = []string{"type"}
	length, lowest, highest := maxType, 1.0, float64(maxTTL)
	s.Properties["command_id"] = &huma.Schema{Type: huma.TypeString, Pattern: commandID.String(), Description: "Makes the request safe to repeat. One is made if absent."}
	s.Properties["type"] = &huma.Schema{Type: huma.TypeString, MaxLength: &length, Description: "What the device is to do."}
	s.Properties["expires_at"] = &huma.Schema{Type: huma.TypeString, Format: "date-time", Description: "When it is no longer to be carried out. Not together with ttl_seconds."}
	s.Properties["ttl_seconds"] = &huma.Schema{Type: huma.TypeInteger, Minimum: &lowest, Maximum: &highest, Description: "Expires after so many seconds. With neither it does not expire."}
	return s
}
