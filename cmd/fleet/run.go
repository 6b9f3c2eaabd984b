package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/crossfade-io/crossfade/internal/fleet"
)

type runCmd struct {
	Broker   string `required:"" env:"FLEET_BROKER" placeholder:"URL" help:"mqtt://host:port, or mqtts://host:port for TLS."`
	User     string `env:"FLEET_USER" help:"MQTT user name."`
	Password string `env:"FLEET_PASSWORD" help:"MQTT password; other users of the machine can see it unless it is given as FLEET_PASSWORD."`
	TLSCA    string `name:"tls-ca" type:"existingfile" placeholder:"FILE" help:"PEM file of the authorities to trust (default: the system's)."`

	Tenants     int           `default:"${tenants}" help:"Number of tenants: acme, globex, initech, tenant-04, …"`
	Devices     int           `default:"${devices}" help:"Number of devices of all tenants together."`
	Seed        uint64        `default:"${seed}" help:"Decides tokens, layouts and values: the same seed is the same fleet."`
	Rate        float64       `default:"${rate}" help:"Messages per second over the whole fleet; 0 is as fast as the broker acknowledges."`
	Messages    int64         `placeholder:"N" help:"End when every device has sent N messages."`
	Duration    time.Duration `placeholder:"TIME" help:"End after this time, like 30s or 2h."`
	Connections int           `placeholder:"N" help:"MQTT connections (default: one per device, up to 100)."`
	MaxInflight int           `default:"${inflight}" placeholder:"N" help:"Unacknowledged messages per connection, at most what the broker allows (${default})."`
	Drain       time.Duration `default:"${drain}" help:"How long to wait for outstanding acknowledgements at the end (${default})."`

	Timeless  float64 `default:"${timeless}" placeholder:"SHARE" help:"Share of telemetry without ts, 0 to 1 (${default})."`
	Heartbeat float64 `default:"${heartbeat}" placeholder:"SHARE" help:"Share of heartbeats (${default})."`
	Shadow    float64 `default:"${shadow}" placeholder:"SHARE" help:"Shadow reports per message (${default})."`
	Bad       float64 `default:"0" placeholder:"SHARE" help:"Share of messages that belong in quarantine (${default})."`

	Record string `type:"path" placeholder:"FILE" help:"Save the record of what was sent here."`
	Resume bool   `help:"Continue the run whose record is in --record."`

	Register  bool `help:"Enter the devices into the database first."`
	Reconcile bool `help:"Compare with the database afterwards."`
	databaseFlags
}

type databaseFlags struct {
	DatabaseURL string        `name:"database-url" env:"DATABASE_URL" placeholder:"URL" help:"PostgreSQL with the pipeline's tables."`
	Patience    time.Duration `default:"10s" help:"How long to wait for more messages to be stored before judging (${default})."`
	Output      string        `enum:"text,json" default:"text" help:"text or json."`
}

// outcome is what --output json prints.
type outcome struct {
	Counts         fleet.Counts  `json:"counts"`
	Uncertain      int64         `json:"uncertain"`
	Reconciliation *fleet.Report `json:"reconciliation,omitempty"`
	OK             *bool         `json:"ok,omitempty"` // of the reconciliation
}

func (c *runCmd) config(con *console) fleet.Config {
	return fleet.Config{
		BrokerURL: c.Broker, User: c.User, Password: c.Password, TLSCA: c.TLSCA,
		Tenants: c.Tenants, Devices: c.Devices, Seed: c.Seed,
		Rate: c.Rate, PerDevice: c.Messages, Connections: c.Connections,
		MaxInflight: c.MaxInflight, DrainTimeout: c.Drain,
		Shares: fleet.Shares{Timeless: c.Timeless, Heartbeat: c.Heartbeat, Bad: c.Bad, Shadow: c.Shadow},
		Logger: con.log,
	}
}

func (c *runCmd) Run(ctx context.Context, con *console) (err error) {
	cfg := c.config(con)
	if err := cfg.Validate(); err != nil {
		return usageError{err}
	}
	if cfg.Record, err = c.loadRecord(); err != nil {
		return err
	}
	var db *pgxpool.Pool
	if c.Register || c.Reconcile {
		if db, err = c.open(ctx); err != nil {
			return err
		}
		defer db.Close()
	}
	f, err := fleet.New(cfg)
	if err != nil {
		return err
	}
	if c.Register {
		if err := fleet.Register(ctx, db, f.Devices()); err != nil {
			return err
		}
	}
	runErr := c.publish(ctx, con, f)
	if c.Record != "" {
		runErr = errors.Join(runErr, f.Record().Save(c.Record))
	}
	if runErr != nil {
		return runErr
	}
	if !c.Reconcile {
		return con.print(c.Output, outcome{Counts: f.Record().Counts()})
	}
	// After a signal the verdict is still wanted; patience bounds the wait.
	return c.judge(context.WithoutCancel(ctx), con, db, f.Record())
}

// loadRecord also keeps a run from overwriting the evidence of an earlier one.
func (c *runCmd) loadRecord() (*fleet.Record, error) {
	if c.Resume && c.Record == "" {
		return nil, usageError{errors.New("fleet: --resume needs --record: name the file of the run to continue")}
	}
	if c.Record == "" {
		return nil, nil
	}
	_, err := os.Stat(c.Record)
	switch {
	case c.Resume:
		return fleet.LoadRecord(c.Record)
	case err == nil:
		return nil, usageError{fmt.Errorf("fleet: %s exists: continue that run with --resume, or name another file", c.Record)}
	case !errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("fleet: --record: %w", err)
	}
	return nil, nil
}

func (c *runCmd) publish(ctx context.Context, con *console, f *fleet.Fleet) error {
	if c.Duration > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, c.Duration)
		defer cancel()
	}
	if con.terminal {
		defer con.progress(f)()
	}
	return f.Run(ctx)
}

func (d *databaseFlags) open(ctx context.Context) (*pgxpool.Pool, error) {
	if d.DatabaseURL == "" {
		return nil, usageError{errors.New("fleet: no database: give --database-url or set DATABASE_URL")}
	}
	db, err := pgxpool.New(ctx, d.DatabaseURL)
	if err != nil {
		return nil, usageError{fmt.Errorf("fleet: --database-url: %w", err)} // pgx leaves the password out
	}
	if err := db.Ping(ctx); err != nil {
		db.Close()
		return nil, fmt.Errorf("fleet: reach the database: %w", err)
	}
	return db, nil
}

func (d *databaseFlags) judge(ctx context.Context, con *console, db fleet.DB, record *fleet.Record) error {
	report, err := fleet.AwaitReconciled(ctx, db, record, d.Patience)
	if err != nil {
		return err
	}
	ok := report.OK()
	if err := con.print(d.Output, outcome{Counts: record.Counts(), Reconciliation: &report, OK: &ok}); err != nil {
		return err
	}
	if !ok {
		return errNotReconciled
	}
	return nil
}

type reconcileCmd struct {
	Record string `arg:"" type:"existingfile" help:"The file that a run wrote with --record."`
	databaseFlags
}

func (c *reconcileCmd) Run(ctx context.Context, con *console) error {
	record, err := fleet.LoadRecord(c.Record)
	if err != nil {
		return err
	}
	db, err := c.open(ctx)
	if err != nil {
		return err
	}
	defer db.Close()
	return c.judge(ctx, con, db, record)
}

func (con *console) print(format string, o outcome) error {
	o.Uncertain = o.Counts.Uncertain()
	if format == "json" {
		enc := json.NewEncoder(con.out)
		enc.SetIndent("", "  ")
		return enc.Encode(o)
	}
	c := o.Counts
	if _, err := fmt.Fprintf(con.out, "attempted %d  acknowledged %d  uncertain %d  without subscriber %d  refused %d  repeated %d  shadow reports %d\n",
		c.Attempted, c.Acked, o.Uncertain, c.Unrouted, c.Refused, c.Repeated, c.Shadow); err != nil {
		return err
	}
	if o.Reconciliation == nil {
		return nil
	}
	if _, err := fmt.Fprintln(con.out, o.Reconciliation); err != nil {
		return err
	}
	for _, e := range o.Reconciliation.Examples {
		if _, err := fmt.Fprintln(con.out, " ", e); err != nil {
			return err
		}
	}
	return nil
}

// progress keeps a line on the terminal up to date until the returned function
// is called.
func (con *console) progress(f *fleet.Fleet) (stop func()) {
	quit, gone := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(gone)
		tick := time.NewTicker(time.Second)
		defer tick.Stop()
		before, last := f.Record().Counts().Acked, time.Now()
		for {
			select {
			case <-quit:
				fmt.Fprint(con.err, "\r\x1b[K")
				return
			case now := <-tick.C:
				c := f.Record().Counts()
				open, all := f.Connected()
				fmt.Fprintf(con.err, "\r\x1b[Kacknowledged %d (%.0f/s)  in flight %d  repeated %d  connections %d/%d",
					c.Acked, float64(c.Acked-before)/now.Sub(last).Seconds(), c.Uncertain(), c.Repeated, open, all)
				before, last = c.Acked, now
			}
		}
	}()
	return func() { close(quit); <-gone }
}
