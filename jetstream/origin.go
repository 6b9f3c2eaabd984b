package jetstream

import (
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/crossfade-io/crossfade/pipeline"
)

// headerOrigin says where an envelope comes from, for those who might drop it. It can
// only have copies processed that would have been dropped or held, never the reverse: a
// stranger who sets it gains nothing.
const (
	headerOrigin = "Crossfade-Origin"
	// By HTTP: there is no copy on the MQTT path.
	originHTTP = "http"
	// By a mirror for whose session nobody may have waited: the MQTT copy may have been
	// dropped in a stage from which the tenant has come far since.
	originUnproved = "mirror-unproved"
	// By a mirror whose session is waited for until a time, in milliseconds since 1970.
	// A stream that stores the envelope later stores what nobody may have waited for.
	originAwaited = "mirror-until-"
)

// sole reports whether a copy must be processed in every stage, whatever is known of
// its message's other copy.
func sole(origin string, stored func() time.Time) bool {
	switch origin {
	case "":
		return false
	case originHTTP, originUnproved:
		return true
	}
	text, ok := strings.CutPrefix(origin, originAwaited)
	if !ok {
		return false
	}
	until, err := strconv.ParseInt(text, 10, 64)
	at := stored()
	return err != nil || at.IsZero() || at.UnixMilli() >= until
}

// producedBy tells HTTP ingest from all others, mirrors of ours among them: what those
// wrap has an MQTT copy that must be read alike.
func producedBy(origin string) pipeline.Origin {
	if origin == originHTTP {
		return pipeline.OriginHTTP
	}
	return pipeline.OriginProducer
}

// unprovedHeader is shared: nobody writes to a header that is published.
var unprovedHeader = nats.Header{headerOrigin: {originUnproved}}

// awaitedOrigin keeps the last header, since the time in it changes with the renewals
// of a lease only.
type awaitedOrigin struct {
	until time.Time
	last  nats.Header
}

// header is what an attempt to publish says of a message that arrived under a proof.
func (o *awaitedOrigin) header(arrived uint64, awaited func() (uint64, time.Time)) nats.Header {
	now, until := awaited()
	if now == 0 || now != arrived {
		return unprovedHeader
	}
	if o.last == nil || !until.Equal(o.until) {
		o.until = until
		o.last = nats.Header{headerOrigin: {originAwaited + strconv.FormatInt(until.UnixMilli(), 10)}}
	}
	return o.last
}
