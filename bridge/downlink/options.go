package downlink

import (
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/crossfade-io/crossfade/legacy_mqtt"
)

// Options are a Sender's. Start from DefaultOptions.
type Options struct {
	Pool *pgxpool.Pool
	// MQTT is the broker and the login. Of its ClientID the Sender's is made.
	MQTT legacy_mqtt.Config
	// ClientID names the connection at the broker. It has to differ from that of every
	// other connection, and should stay the same over restarts. Empty: that of MQTT
	// with "-downlink" appended.
	ClientID string
	// Window is how many messages may be sent and not confirmed, 1 to 65535.
	Window int
	// PerLane is how many devices of a lane a turn sends to, 1 to 1000; there are 64
	// lanes. Bytes is about how much content a turn reads, 1 KiB and up; a row alone may
	// be larger.
	PerLane, Bytes int
	// Patience is how long the broker may confirm nothing at all before what is under
	// way counts as failed; at most 45 s, since PostgreSQL ends an idle session after
	// 60 s.
	Patience time.Duration
	// Beat is how often lanes are shared anew and rows looked for though nothing was
	// announced, 10 ms to 30 s.
	Beat time.Duration
	// FirstRetry and LastRetry bound the pause before a failed row is tried again, which
	// doubles each time; a random half of it is taken off.
	FirstRetry, LastRetry time.Duration
	// Sweep is how often commands are looked through for expired and missed ones, and
	// the tables are tidied.
	Sweep time.Duration
	// Missed is for how long a command without an expiry may stay unacknowledged after
	// it was published, a second and up; 0 is for ever.
	Missed time.Duration

	Registry prometheus.Registerer
	Logger   *slog.Logger
}

// DefaultOptions returns what fits most installations: a command without an expiry is
// missed after a day.
func DefaultOptions() Options {
	return Options{
		Window: 1000, PerLane: 32, Bytes: 16 << 20, Patience: 15 * time.Second, Beat: time.Second,
		FirstRetry: time.Second, LastRetry: time.Minute, Sweep: 5 * time.Second, Missed: 24 * time.Hour,
	}
}

// Validate names the options that are out of range and the remedy.
func (o *Options) Validate() error {
	var errs []error
	need := func(ok bool, field, remedy string, value any) {
		if !ok {
			errs = append(errs, fmt.Errorf("downlink: %s is %v: %s", field, value, remedy))
		}
	}
	need(o.Pool != nil, "Pool", "set it", nil)
	need(o.Registry != nil, "Registry", "set it", nil)
	need(o.Logger != nil, "Logger", "set it", nil)
	need(o.Window >= 1 && o.Window <= 65535, "Window", "choose 1 to 65535", o.Window)
	need(o.PerLane >= 1 && o.PerLane <= 1000, "PerLane", "choose 1 to 1000", o.PerLane)
	need(o.Bytes >= 1024, "Bytes", "choose 1024 or more", o.Bytes)
	need(o.Patience > 0 && o.Patience <= 45*time.Second, "Patience", "choose more than 0 and at most 45s", o.Patience)
	need(o.Beat >= 10*time.Millisecond && o.Beat <= 30*time.Second, "Beat", "choose 10ms to 30s", o.Beat)
	need(o.FirstRetry > 0 && o.LastRetry >= o.FirstRetry, "FirstRetry, LastRetry", "choose 0 < FirstRetry ≤ LastRetry", fmt.Sprint(o.FirstRetry, ", ", o.LastRetry))
	need(o.Sweep > 0, "Sweep", "choose more than 0", o.Sweep)
	need(o.Missed == 0 || o.Missed >= time.Second, "Missed", "choose a second or more, or 0 for never", o.Missed)
	if err := o.MQTT.Validate(); err != nil {
		errs = append(errs, fmt.Errorf("downlink: %w", err))
	}
	return errors.Join(errs...)
}
