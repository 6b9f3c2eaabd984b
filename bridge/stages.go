package bridge

import (
	"context"
	"encoding/json"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/crossfade-io/crossfade/bridge/control"
	"github.com/crossfade-io/crossfade/bridge/stage"
	"github.com/crossfade-io/crossfade/flags"
	"github.com/crossfade-io/crossfade/legacy_mqtt"
)

// Fact is what stage a tenant is in.
type Fact = control.Fact

// Facts returns the stages of all tenants that have one, by name.
func Facts(ctx context.Context, pool *pgxpool.Pool) ([]Fact, error) { return control.Facts(ctx, pool) }

// Tenants returns the tenants that have a device, by name.
func Tenants(ctx context.Context, pool *pgxpool.Pool) ([]string, error) {
	return control.Tenants(ctx, pool)
}

// Instance is what an instance last said of itself.
type Instance struct {
	control.Instance
	Alive  bool              `json:"alive"` // it runs and was heard of lately
	Checks map[string]Status `json:"checks"`
}

// Instances returns what instances last said of themselves, by name; those that have
// gone are among them for as long as their MQTT session may exist.
func Instances(ctx context.Context, pool *pgxpool.Pool) ([]Instance, error) {
	rows, err := control.Instances(ctx, pool)
	if err != nil {
		return nil, err
	}
	instances := make([]Instance, 0, len(rows))
	for _, row := range rows {
		i := Instance{Instance: row, Alive: row.Live && row.State == "running"}
		var said struct {
			Checks map[string]Status `json:"checks"`
		}
		if err := json.Unmarshal(row.Details, &said); err != nil {
			return nil, err
		}
		i.Checks, i.Details = said.Checks, nil
		instances = append(instances, i)
	}
	return instances, nil
}

// wireControl makes this instance's part in the protocol of stages.
func (b *Bridge) wireControl() (err error) {
	c := &b.config
	o := c.Control
	o.Pool, o.Instance, o.Version, o.Standard, o.Beat = b.store.Pool(), c.Instance, c.Version, c.DefaultStage, c.FlagBeat
	o.Wishes, o.Prober = wishes{b.flags, c.Flags.Provider == nil}, b.probe
	o.Session, o.Mirror = b.session(c.MQTT, "mqtt"), b.session(c.Mirror, "mirror")
	if c.Control.Retention == 0 {
		c.Control.Retention = c.Partitions.LedgerRetention
	}
	o.Retention = c.Control.Retention
	o.Moved = b.standby.restage
	o.Details = func() any { return b.health.readiness(c.Instance) }
	o.Renewed = b.renewed
	o.Registry, o.Logger = b.registry, b.log
	if b.control, err = control.New(o); err != nil {
		return err
	}
	b.gate.look, b.gate.spans = b.control.Look, b.control.Spans
	b.sentinels.saw, b.sentinels.genuine, b.sentinels.brought = b.control.Saw, b.control.Genuine, b.control.Mirrored
	b.lag = newLag(b, b.registry)
	return nil
}

// session is what a broker keeps for a source; nil for none.
func (b *Bridge) session(c *legacy_mqtt.Config, part string) *control.Session {
	if c == nil {
		return nil
	}
	return &control.Session{ClientID: c.ClientID, Expiry: c.Kept(), Granted: func() time.Duration {
		for _, f := range b.feeds {
			if f, ok := f.(*feed[*legacy_mqtt.Source]); ok && f.name == part {
				return f.source().Kept()
			}
		}
		return 0
	}}
}

// renewed is told whether PostgreSQL has answered; without traffic nothing else shows it.
func (b *Bridge) renewed(err error) {
	if err == nil {
		b.health.postgres.Store(nil)
	} else if b.health.postgres.Swap(&err) == nil {
		b.log.Warn("PostgreSQL does not answer", "error", err)
	}
}

// wishes makes a flags.Client speak of stages.
type wishes struct {
	*flags.Client
	store bool // the operator's own store is who answers
}

func (w wishes) WishAll(ctx context.Context, tenants []string, took func(string, control.Wish, error)) {
	w.EvaluateAll(ctx, tenants, func(tenant string, a flags.Answer, err error) {
		operator := a.Override || w.store && a.Reason == flags.ReasonTarget
		took(tenant, control.Wish{Stage: stage.Stage(a.Variant), Why: string(a.Reason), Operator: operator}, err)
	})
}

func (w wishes) Override(tenant string) (stage.Stage, bool, error) {
	v, ok, err := w.Client.Override(tenant)
	return stage.Stage(v), ok, err
}
