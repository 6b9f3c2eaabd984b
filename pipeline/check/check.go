// Package check decides whether a message may take effect. The checks are the
// table [Order], one function each, in the order of CONTRACT.md ("Validation"):
// the first that objects gives the message its reason.
//
// A check looks only at what both copies of a message share (promise P3): at the
// [pipeline.Message] as decoded, the device's registry entry and the settings;
// never at the path, the raw bytes or, but for what expires, the clock. It does no
// I/O: what it needs from the database is looked up for the whole batch beforehand.
//
// One check is decided later than the others, though it has its place among them:
// the rate limit charges a message when it takes effect, in the transaction that
// finds it to be new, so that a second copy costs nothing ([Verdict.Metered]).
package check

import (
	"time"

	"github.com/crossfade-io/crossfade/pipeline"
)

// Settings are the limits that operators set.
type Settings struct {
	// MaxPayloadBytes bounds the canonical payload, in bytes.
	MaxPayloadBytes int
	// RequireToken demands a provisioning token of telemetry.
	RequireToken bool
	// RateLimit is how many messages a second a device may send in the long run,
	// and RateBurst how many at once, at least 1. A RateLimit of 0 is no limit.
	RateLimit float64
	RateBurst int
	// CertAuth lets telemetry pass without a token when the broker's user name is
	// {tenant}/{device} and the device has a certificate in that name. CertTrustTopic
	// lets it pass without a user name too: for brokers that hold the topic against
	// the certificate themselves.
	CertAuth, CertTrustTopic bool
}

// DefaultSettings are CONTRACT.md's.
func DefaultSettings() Settings {
	return Settings{MaxPayloadBytes: 8192, RequireToken: true, RateLimit: 5, RateBurst: 20}
}

// Input is what a check sees. Device is nil where the registry has none.
type Input struct {
	*pipeline.Message
	Device   *pipeline.Device
	Settings *Settings
	Now      time.Time // when the message is judged, for what expires
}

// Check objects to a message by returning its reason, and for people a detail.
type Check struct {
	// On lists the kinds of messages that the check looks at.
	On Kinds
	// NeedsDevice marks the checks that look at Input.Device. They come last, so
	// that a message which fails before them costs no look-up.
	NeedsDevice bool
	// Run is nil for the rate limit.
	Run func(Input) (pipeline.Reason, string)
}

// Verdict is what the checks say of a message.
type Verdict struct {
	Reason pipeline.Reason
	Detail string
	// Metered: the message got past the place of the rate limit. If it takes effect
	// it is charged, and where its device has sent too many the reason is
	// RATE_LIMITED, whatever a later check objected to.
	Metered bool
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
	rate, // 7
	{On: All, Run: payloadTenant},
	{On: Telemetry, Run: siteGiven},
	{On: All, NeedsDevice: true, Run: registered},
	{On: All, NeedsDevice: true, Run: subscription},
	{On: All, NeedsDevice: true, Run: active},
	{On: Telemetry, NeedsDevice: true, Run: siteMatches},
	{On: Telemetry, NeedsDevice: true, Run: authentic},
}

// Content runs the checks that need no registry.
func Content(in Input) Verdict { return run(in, false) }

// Registry runs the checks that need the device's entry, on a message that has
// passed those of Content.
func Registry(in Input) Verdict {
	v := run(in, true)
	v.Metered = true
	return v
}

func run(in Input, device bool) (v Verdict) {
	kind := Kinds(1) << in.Kind
	for i := range Order {
		c := &Order[i]
		switch {
		case c.NeedsDevice != device || c.On&kind == 0:
		case c.Run == nil:
			v.Metered = true
		default:
			if v.Reason, v.Detail = c.Run(in); v.Reason != pipeline.Accepted {
				return v
			}
		}
	}
	return v
}
