package fleet

// Kind is what a message is.
type Kind uint8

// The kinds. All but KindShadow take a seq of their device.
const (
	// KindTelemetry has ts, seq and metrics.
	KindTelemetry Kind = iota
	// KindTimeless has seq and metrics, but no ts.
	KindTimeless
	// KindHeartbeat has ts and seq, but no metrics.
	KindHeartbeat
	// KindBad is telemetry that fails one check; see ExpectedReason.
	KindBad
	// KindShadow is a shadow report; its seq is the report's version.
	KindShadow
)

// MsgType is the end of the message's topic.
func (k Kind) MsgType() string {
	switch k {
	case KindHeartbeat:
		return "heartbeat"
	case KindShadow:
		return "shadow/reported"
	}
	return "telemetry"
}

// String names the kind for people.
func (k Kind) String() string {
	switch k {
	case KindTelemetry:
		return "telemetry"
	case KindTimeless:
		return "timeless"
	case KindHeartbeat:
		return "heartbeat"
	case KindBad:
		return "bad"
	case KindShadow:
		return "shadow"
	}
	return "unknown"
}

// Different salts keep a message's kind, values and flaw independent of each other.
const (
	saltKind   = 0x6b696e64
	saltShadow = 0x73686164
	saltValue  = 0x76616c75
	saltFlaw   = 0x666c6177
	saltLayout = 0x6c61796f
)

// unit maps a hash to [0, 1).
func unit(h uint64) float64 { return float64(h>>11) / (1 << 53) }

// KindOf is the kind of the device's message seq. Never KindShadow.
func (s Shares) KindOf(d Device, seq int64) Kind {
	x := unit(mix(d.Seed^saltKind, seq))
	for _, c := range [...]struct {
		share float64
		kind  Kind
	}{{s.Timeless, KindTimeless}, {s.Heartbeat, KindHeartbeat}, {s.Bad, KindBad}} {
		if x < c.share {
			return c.kind
		}
		x -= c.share
	}
	return KindTelemetry
}

// ReportsShadow says whether the device's message seq is followed by a shadow
// report, whose version is then seq.
func (s Shares) ReportsShadow(d Device, seq int64) bool {
	return unit(mix(d.Seed^saltShadow, seq)) < s.Shadow
}

// flaw is what is wrong with a bad message.
type flaw uint8

const (
	flawNone flaw = iota
	flawNotJSON
	flawVersion
	flawMetrics
	flawTenant
	flawNoSite
	flawSite
	flawNoToken
	flawToken
)

const flaws = 8

func flawOf(d Device, seq int64, kind Kind) flaw {
	if kind != KindBad {
		return flawNone
	}
	return flaw(1 + mix(d.Seed^saltFlaw, seq)%flaws)
}

// ExpectedReason is the reason code (CONTRACT.md, "Validation") with which the
// device's bad message seq belongs in quarantine.
func ExpectedReason(d Device, seq int64) string {
	switch flawOf(d, seq, KindBad) {
	case flawNotJSON:
		return "INVALID_JSON"
	case flawVersion:
		return "UNSUPPORTED_ENVELOPE_VERSION"
	case flawMetrics:
		return "METRICS_INVALID"
	case flawTenant:
		return "TENANT_MISMATCH_TOPIC_VS_PAYLOAD"
	case flawNoSite:
		return "MISSING_SITE_ID"
	case flawSite:
		return "SITE_MISMATCH_REGISTRY_VS_PAYLOAD"
	case flawNoToken:
		return "TOKEN_MISSING"
	}
	return "TOKEN_INVALID"
}
