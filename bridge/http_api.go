package bridge

import (
	"context"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/crossfade-io/crossfade/bridge/api"
	"github.com/crossfade-io/crossfade/bridge/ingest"
	"github.com/crossfade-io/crossfade/jetstream"
	"github.com/crossfade-io/crossfade/pipeline/store"
)

// httpAPI is the API with the database connections that are its own. It knows
// nothing of stages.
type httpAPI struct {
	server *api.Server
	pool   *pgxpool.Pool
}

// Bounds of the API's statements. A client waits for them.
const (
	apiStatementTimeout = 10 * time.Second
	apiLockTimeout      = 5 * time.Second
	apiPublishTimeout   = 5 * time.Second
	apiStopPatience     = 6 * time.Second
)

// makeAPI makes the API, where there is to be one. It listens only once the database
// is known to be set up.
func (b *Bridge) makeAPI(ctx context.Context) error {
	c := b.config.API
	if c == nil {
		return nil
	}
	sc := b.config.Store
	sc.MaxConns = c.MaxConns
	sc.StatementTimeout, sc.LockTimeout = min(sc.StatementTimeout, apiStatementTimeout), min(sc.LockTimeout, apiLockTimeout)
	pool, err := store.NewPool(ctx, sc, "crossfade api")
	if err != nil {
		return err
	}
	parts := api.Parts{Pool: pool, Registry: b.registry, Logger: b.log.With("part", "api")}
	err = b.addToAPI(&parts)
	var server *api.Server
	if err == nil {
		server, err = api.New(*c, parts)
	}
	if err != nil {
		pool.Close()
		return err
	}
	b.api = &httpAPI{server, pool}
	return nil
}

// addToAPI adds what takes messages of devices, where there is a JetStream to take
// them. A device that the registry lacks cannot send for itself, even where devices
// are provisioned: it has no token yet. A gateway can send for it.
func (b *Bridge) addToAPI(parts *api.Parts) error {
	if b.nats == nil || b.config.JetStream == nil {
		return nil
	}
	publisher, err := jetstream.NewIngest(b.nats, apiPublishTimeout)
	if err != nil {
		return err
	}
	parts.Publisher = publisher
	parts.Mount = append(parts.Mount, func(a huma.API, auth *api.Auth) error {
		o := ingest.DefaultOptions()
		o.Publisher, o.Authenticator, o.Logger = publisher, auth, parts.Logger
		o.MaxBody, o.MaxBatchBody = api.MaxBody, api.MaxBatch
		return ingest.Register(a, o)
	})
	return nil
}

func (b *Bridge) startAPI() error {
	if b.api == nil {
		return nil
	}
	return b.api.server.Start()
}

// stopAPI ends intake by HTTP: what has been answered 202 is in the stream. Clients
// that are slow are cut off, so that they do not take the time that what is in hand
// needs; they have no answer, and ask again.
func (b *Bridge) stopAPI(ctx context.Context) {
	if b.api == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, apiStopPatience)
	defer cancel()
	if err := b.api.server.Stop(ctx); err != nil {
		b.log.Warn("clients of the API were cut off", "error", err)
	}
}

func (b *Bridge) closeAPI(ctx context.Context) error {
	if b.api == nil {
		return nil
	}
	err := b.api.server.Stop(ctx)
	b.api.pool.Close()
	return err
}

// APIAddress is where the HTTP API is served, once it is; "" before, and without one.
func (b *Bridge) APIAddress() string {
	if b.api == nil {
		return ""
	}
	return b.api.server.Address()
}
