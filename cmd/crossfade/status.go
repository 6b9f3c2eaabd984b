package main

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/crossfade-io/crossfade/bridge"
	"github.com/crossfade-io/crossfade/bridge/control"
	"github.com/crossfade-io/crossfade/bridge/parity"
	"github.com/crossfade-io/crossfade/flags"
	"github.com/crossfade-io/crossfade/internal/config"
)

type statusCommand struct {
	Tenants  []string        `arg:"" optional:"" name:"tenant" help:"Tell all there is to tell of these tenants. Without any, a table of all."`
	Watch    bool            `short:"w" help:"Show it again and again until interrupted."`
	Interval time.Duration   `default:"2s" help:"Time between two looks with --watch, 100ms or more."`
	Output   string          `enum:"text,json" default:"text" help:"Form of the answer: ${enum}. With --watch, one JSON document per line."`
	Common   config.Common   `embed:"" group:"General"`
	Database config.Database `embed:"" group:"PostgreSQL"`
}

// Help is shown by --help below the summary.
func (statusCommand) Help() string {
	return `WANTED is what the flag says, STAGE what is. MQTT and JETSTREAM say how many messages wait on each path, and how long: what is in a stream or in an instance's hand, and how long a sentinel last took until all before it was settled, or how long the oldest message or a sentinel has been waiting if that is more. 3+ is three or more: what waits in the broker's queue cannot be seen by a subscriber. A question mark is not known; name the tenant, or use --output json, for the reason. Sentinels measure in the stages shadow and live, about once a minute. PARITY is how well the two paths agreed over the last 10 minutes: inconclusive without traffic.

Exit code 3 when a tenant is named that nobody knows.

Examples:

  crossfade status
  crossfade status acme
  crossfade status --watch --interval 1s
  crossfade status --output json | jq '.tenants[] | select(.waits_for) | {tenant, waits_for, left_seconds}'`
}

type statusAnswer struct {
	At        time.Time         `json:"at"`
	Tenants   []tenantStatus    `json:"tenants"`
	Instances []bridge.Instance `json:"instances"`
	Lag       lagSources        `json:"lag"`
}

// Run shows the status once, or until ctx ends.
func (s *statusCommand) Run(ctx context.Context, c *console) error {
	if s.Watch && s.Interval < 100*time.Millisecond {
		return usageError{fmt.Errorf("--interval is %v: choose 100ms or more", s.Interval)}
	}
	pool, err := openPool(ctx, s.Database, "crossfade status")
	if err != nil {
		return err
	}
	defer pool.Close()
	for {
		answer, err := s.read(ctx, pool)
		if s.Watch && ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		if err := s.show(c, answer); err != nil {
			return err
		}
		if !s.Watch {
			return nil
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(s.Interval):
		}
	}
}

func (s *statusCommand) read(ctx context.Context, pool *pgxpool.Pool) (statusAnswer, error) {
	o, err := readOverview(ctx, pool)
	if err != nil {
		return statusAnswer{}, err
	}
	names := o.names()
	if len(s.Tenants) > 0 {
		for _, t := range s.Tenants {
			if _, known := slices.BinarySearch(names, t); !known {
				return statusAnswer{}, fmt.Errorf("%w: tenant %s has no device, no stage and no wish: check the name", errNo, printable(t))
			}
		}
		names = slices.Compact(slices.Sorted(slices.Values(s.Tenants)))
	}
	if err := o.addInstances(ctx, pool); err != nil {
		return statusAnswer{}, err
	}
	if err := o.addLag(ctx, pool); err != nil {
		return statusAnswer{}, err
	}
	windows, err := parity.Windows(ctx, pool, names, o.at.Add(-parityWindow))
	if err != nil {
		return statusAnswer{}, err
	}
	a := statusAnswer{At: o.at, Tenants: make([]tenantStatus, 0, len(names)), Instances: o.instances, Lag: lagSourcesOf(o.lag)}
	for i, name := range names {
		t := o.tenant(name, windows[i])
		if len(s.Tenants) > 0 && t.Parity.Mismatched > 0 {
			if err := t.Parity.addSamples(ctx, pool, name); err != nil {
				return a, err
			}
		}
		a.Tenants = append(a.Tenants, t)
	}
	return a, nil
}

// parityWindow is how far back status looks for its verdict.
const parityWindow = 10 * time.Minute

// overview is what the tables say of tenants, read within a moment.
type overview struct {
	at        time.Time // PostgreSQL's clock, by which all times in it are
	facts     map[string]control.Fact
	devices   []string // tenants that have one, by name
	unread    error    // why these could not be read; a rollback does without
	wishes    flags.Wishes
	holds     map[string]control.Held
	instances []bridge.Instance // status and plans only, like what follows
	latencies map[string]control.Latency
	waiting   map[string]control.Waiting
	lag       *control.Lag
}

func readOverview(ctx context.Context, pool *pgxpool.Pool) (*overview, error) {
	o := &overview{facts: make(map[string]control.Fact), holds: make(map[string]control.Held)}
	if err := pool.QueryRow(ctx, `SELECT now()`).Scan(&o.at); err != nil {
		return nil, fmt.Errorf("ask PostgreSQL for the time: %w", err)
	}
	o.at = o.at.UTC()
	var err error
	if o.wishes, err = flags.OpenStore(pool).List(ctx); err != nil {
		return nil, err
	}
	facts, err := control.Facts(ctx, pool)
	if err != nil {
		return nil, err
	}
	for _, f := range facts {
		o.facts[f.Tenant] = f
	}
	if o.devices, err = control.Tenants(ctx, pool); err != nil {
		return nil, err
	}
	slices.Sort(o.devices) // the database's collation may order otherwise
	holds, err := control.Holds(ctx, pool)
	if err != nil {
		return nil, err
	}
	for _, h := range holds {
		o.holds[h.Tenant] = h
	}
	return o, nil
}

// addInstances reads what instances say. It is not read where it is not needed: a
// rollback must not fail over it.
func (o *overview) addInstances(ctx context.Context, pool *pgxpool.Pool) (err error) {
	o.instances, err = bridge.Instances(ctx, pool)
	return err
}

// addLag reads what is known of how far paths are behind.
func (o *overview) addLag(ctx context.Context, pool *pgxpool.Pool) (err error) {
	if o.latencies, err = control.Latencies(ctx, pool); err != nil {
		return err
	}
	if o.waiting, err = control.WaitingSentinels(ctx, pool); err != nil {
		return err
	}
	o.lag, err = control.ReadLag(ctx, pool, 0)
	return err
}

// names are those of all tenants that have a device, a stage or a wish of their own.
func (o *overview) names() []string {
	names := slices.Clone(o.devices)
	for name := range o.facts {
		names = append(names, name)
	}
	for _, t := range o.wishes.Targets {
		names = append(names, t.Tenant)
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// held returns the hold under which a tenant is: its own, or that of all.
func (o *overview) held(tenant string) (control.Held, bool) {
	if h, ok := o.holds[tenant]; ok {
		return h, true
	}
	h, ok := o.holds[control.Everybody]
	return h, ok
}

// alive reports whether any instance runs: otherwise nothing moves.
func (o *overview) alive() bool {
	return slices.ContainsFunc(o.instances, func(i bridge.Instance) bool { return i.Alive })
}
