package control

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/crossfade-io/crossfade/bridge/stage"
	"github.com/crossfade-io/crossfade/pipeline"
)

// Wish is a clean answer to which stage is wanted for a tenant.
type Wish struct {
	Stage stage.Stage
	// Why says where the answer comes from, for those who look at status.
	Why string
	// Operator is set where an operator has decided for this very tenant.
	Operator bool
}

// Wishes says which stage is wanted for a tenant. Anything but a clean answer is an
// error, upon which the tenant stays where it is.
type Wishes interface {
	// WishAll calls took once for each tenant, one call at a time, as answers come.
	// It takes no longer than its own bounds and ctx.
	WishAll(ctx context.Context, tenants []string, took func(tenant string, wish Wish, err error))
	// Changes signals that answers may differ from those given before.
	Changes() <-chan struct{}
	// Override is what the operator has set for a tenant, from memory: it counts
	// whatever else is wished, and however long that takes to find out.
	Override(tenant string) (wish stage.Stage, ok bool, err error)
	// OverrideChanges signals that overrides may differ; nil where there are none.
	OverrideChanges() <-chan struct{}
}

// Prober sends sentinels.
type Prober interface {
	// Send publishes one of each kind for every sentinel and returns once the broker
	// has confirmed them all; it may be called for thousands at once. An error means
	// that some may not have been sent. Within ctx; it may be called concurrently.
	Send(ctx context.Context, sentinels []Sentinel) error
}

// Sentinel is a marked message of a tenant's.
type Sentinel struct {
	Tenant, Nonce string
	// Expiry is for how long a broker should keep it for a session that is away.
	Expiry time.Duration
}

// Kinds of sightings. What a proof needs on the JetStream side is one of each, since
// each has a stream of its own; an MQTT session has one queue, so one of any will do.
const (
	KindTelemetry = "telemetry"
	KindShadow    = "shadow"
	KindCommands  = "commands"
)

var kinds = []string{KindTelemetry, KindShadow, KindCommands}

// Sighting is a sentinel that came out of one path with everything before it settled.
type Sighting struct {
	Nonce string
	Path  pipeline.Path
	Kind  string
	At    time.Time
}

// Session is an instance's MQTT session at the broker.
type Session struct {
	// ClientID names it. Under another one the old session lives on, and is awaited.
	ClientID string
	// Expiry is how long the broker keeps it without the instance; Never for ever.
	// What the broker needs to notice that the instance is gone is added to it.
	Expiry time.Duration
	// Granted is what the broker has said it keeps the session for, counted in the same
	// way; 0: it has said nothing. The longer of the two counts. nil: nobody asks.
	Granted func() time.Duration
}

// Never is the expiry of a session that does not expire.
const Never time.Duration = -1

// Options configures a Control. Begin with DefaultOptions.
type Options struct {
	Pool     *pgxpool.Pool
	Instance string // stable over restarts, one process at a time
	Version  string
	Session  *Session // of the source; nil: this instance has none
	Mirror   *Session // of the mirror to JetStream; nil: this instance has none
	// Standard is the stage that is wished where nothing is known of a tenant. Until it
	// has a row of its own, the inner stage of the same authority holds.
	Standard stage.Stage
	Wishes   Wishes
	Prober   Prober // nil: this instance cannot send sentinels

	// Beat is how often facts and wishes are read though nothing was announced.
	Beat time.Duration
	// LeaseTTL is how long nobody moves on without an instance that is not heard of,
	// and Renew how often it renews its lease. An instance drops nothing when PostgreSQL
	// has not answered it for LeaseTTL.
	LeaseTTL, Renew time.Duration
	// LeaseMost is the longest LeaseTTL that any instance of the installation may have,
	// now or before: that long nobody drops anything when PostgreSQL may have lost commits.
	LeaseMost time.Duration
	// Round is how often the leader looks at what has come about, unless it is told
	// sooner, and others try to become the leader.
	Round time.Duration
	// Dwell is how long a tenant stays in an inner stage, from confirmation, before the
	// sentinel is sent: the time within which a producer that writes to both
	// transports has written the second copy. 0 where a mirror makes it.
	Dwell time.Duration
	// Resend is after how long another sentinel is sent for one that has not come; the
	// time doubles up to ResendMax. A leader that could send none for ResendMax lets
	// another instance lead, if there is one that may be able to.
	Resend, ResendMax time.Duration
	// Retention is for how long the ledger remembers a message. While an older one has not
	// been delivered, its tenant moves nowhere but back to MQTT. 0: nobody looks.
	Retention time.Duration
	// BeatEvery is how often a tenant in an inner stage gets a sentinel to measure its
	// paths, 0 for never, and BeatRate how many a second are sent for all tenants at
	// most. Missing is after how long one that has not come is reported.
	BeatEvery time.Duration
	BeatRate  float64
	Missing   time.Duration

	// Moved is called when some tenant's stage has changed, before the change is
	// confirmed; from then on all decisions must follow it. It does not block.
	Moved func()
	// Details goes into this instance's row with every renewal, as JSON.
	Details func() any
	// Renewed is told how each renewal went.
	Renewed func(error)

	Registry prometheus.Registerer
	Logger   *slog.Logger
}

// DefaultOptions returns the defaults: leases of 5 s, a dwell of 30 s, a beat a minute.
func DefaultOptions() Options {
	return Options{
		Standard:  stage.MQTT,
		Beat:      10 * time.Second,
		LeaseTTL:  5 * time.Second,
		LeaseMost: 5 * time.Minute,
		Renew:     time.Second,
		Round:     500 * time.Millisecond,
		Dwell:     30 * time.Second,
		Resend:    10 * time.Second,
		ResendMax: time.Minute,
		BeatEvery: time.Minute,
		BeatRate:  20,
		Missing:   30 * time.Second,
		Moved:     func() {},
		Details:   func() any { return struct{}{} },
		Renewed:   func(error) {},
	}
}

// Validate names the fields that cannot work, and what to do.
func (o *Options) Validate() error {
	var errs []error
	need := func(ok bool, format string, args ...any) {
		if !ok {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	need(o.Pool != nil, "Pool is nil: set the pool of the database")
	need(o.Instance != "", "Instance is empty: give each process a name that it keeps")
	need(o.Wishes != nil, "Wishes is nil: set a source of wishes")
	need(o.Logger != nil && o.Registry != nil, "Logger and Registry must be set")
	for name, s := range map[string]*Session{"Session": o.Session, "Mirror": o.Mirror} {
		need(s == nil || s.ClientID != "", "%s.ClientID is empty: set the MQTT client ID", name)
		need(s == nil || s.Expiry == Never || s.Expiry >= 0, "%s.Expiry is below zero: set the session's expiry, or Never", name)
	}
	need(o.Beat > 0, "Beat is %v: set more than 0 (default 10s)", o.Beat)
	need(o.Renew > 0 && o.LeaseTTL >= 3*o.Renew, "LeaseTTL is %v and Renew is %v: set LeaseTTL to three times Renew or more (default 5s and 1s)", o.LeaseTTL, o.Renew)
	need(o.LeaseMost >= o.LeaseTTL, "LeaseMost is %v and LeaseTTL is %v: set LeaseTTL to no more than LeaseMost (default 5m)", o.LeaseMost, o.LeaseTTL)
	need(o.Round > 0 && o.Round <= 2*time.Second, "Round is %v: set more than 0 and no more than 2s (default 500ms)", o.Round)
	need(o.Dwell >= 0, "Dwell is %v: set 0 or more (default 30s)", o.Dwell)
	need(o.Resend > 0 && o.ResendMax >= o.Resend, "Resend is %v and ResendMax is %v: set more than 0, and ResendMax no less (default 10s and 1m)", o.Resend, o.ResendMax)
	need(o.Retention >= 0, "Retention is %v: set the ledger's, or 0 to look at no lag", o.Retention)
	need(o.BeatEvery >= 0, "BeatEvery is %v: set 0 for no beats, or more (default 1m)", o.BeatEvery)
	need(o.BeatEvery == 0 || o.BeatRate > 0, "BeatRate is %g: set more than 0 (default 20 a second)", o.BeatRate)
	need(o.BeatEvery == 0 || o.Missing > 0, "Missing is %v: set more than 0 (default 30s)", o.Missing)
	need(o.Moved != nil && o.Details != nil && o.Renewed != nil, "Moved, Details and Renewed must be set: begin with DefaultOptions")
	if _, err := stage.Parse(string(o.Standard)); err != nil {
		errs = append(errs, fmt.Errorf("option Standard: %w", err))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("control options: %w", err)
	}
	return nil
}
