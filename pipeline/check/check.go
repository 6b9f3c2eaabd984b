// Package check decides whether a message may take effect. The checks are the
// table [Order], one function each, in the order of CONTRACT.md ("Validation"):
// the first that objects gives the message its reason.
//
// A check looks only at what both copies of a message share (promise P3): at the
// [pipeline.Message] as decoded, the device's registry entry and the settings;
// never at the path, the raw bytes or the clock. It does no I/O: what it needs
// from the database is looked up for the whole batch beforehand.
package check

import "github.com/crossfade-io/crossfade/pipeline"

// Settings are the limits that operators set.
type Settings struct {
	// MaxPayloadBytes bounds the canonical payload, in bytes.
	MaxPayloadBytes int
	// RequireToken demands a provisioning token of telemetry.
	RequireToken bool
}

// DefaultSettings are CONTRACT.md's.
func DefaultSettings() Settings {
	return Settings{MaxPayloadBytes: 8192, RequireToken: true}
}

// Input is what a check sees. Device is nil where the registry has none.
type Input struct {
	*pipeline.Message
	Device   *pipeline.Device
	Settings *Settings
}

// Check objects to a message by returning its reason, and for people a detail.
type Check struct {
	// On lists the kinds of messages that the check looks at.
	On Kinds
	// NeedsDevice marks the checks that look at Input.Device. They come last, so
	// that a message which fails before them costs no look-up.
	NeedsDevice bool
	Run         func(Input) (pipeline.Reason, string)
}

// Kinds is a set of message kinds.
type Kinds uint8

// Sets of kinds to choose from.
const (
	Telemetry  Kinds = 1 << pipeline.KindTelemetry
	Shadow     Kinds = 1 << pipeline.KindShadow
	CommandAck Kinds = 1 << pipeline.KindCommandAck
	All              = Telemetry | Shadow | CommandAck
)

// Order is every check, first to last.
var Order = []Check{
	{On: All, Run: readable}, // 1, 2, 3
	{On: Telemetry, Run: version},
	{On: All, Run: size},
	{On: Telemetry, Run: metrics},
	{On: Telemetry, Run: seq},
	{On: Shadow, Run: shadow},
	{On: CommandAck, Run: commandAck},
	{On: All, Run: payloadTenant},
	{On: Telemetry, Run: siteGiven},
	{On: All, NeedsDevice: true, Run: registered},
	{On: All, NeedsDevice: true, Run: active},
	{On: Telemetry, NeedsDevice: true, Run: siteMatches},
	{On: Telemetry, NeedsDevice: true, Run: token},
}

// Content runs the checks that need no registry.
func Content(m *pipeline.Message, s *Settings) (pipeline.Reason, string) {
	return run(Input{Message: m, Settings: s}, false)
}

// Registry runs the checks that need the device's entry; d is nil where there is none.
func Registry(m *pipeline.Message, d *pipeline.Device, s *Settings) (pipeline.Reason, string) {
	return run(Input{Message: m, Device: d, Settings: s}, true)
}

func run(in Input, device bool) (pipeline.Reason, string) {
	kind := Kinds(1) << in.Kind
	for i := range Order {
		c := &Order[i]
		if c.NeedsDevice != device || c.On&kind == 0 {
			continue
		}
		if reason, detail := c.Run(in); reason != pipeline.Accepted {
			return reason, detail
		}
	}
	return pipeline.Accepted, ""
}
