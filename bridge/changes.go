package bridge

import (
	"context"
	"sync"

	"github.com/crossfade-io/crossfade/pipeline/store"
)

// followChanges keeps what the pipeline remembers of the database up to date until
// ctx ends: it listens to what others change there, and reads app_settings.
func (b *Bridge) followChanges(ctx context.Context) {
	var parts sync.WaitGroup
	parts.Go(func() { b.appSettings.follow(ctx) })
	o := store.DefaultListenOptions()
	o.Logger = b.log
	if err := b.store.Listen(ctx, o, b.heard); err != nil {
		b.log.Error("changes are not listened to; caches grow as old as their time allows", "error", err)
	}
	parts.Wait()
}

// heard is called from one goroutine and does not block.
func (b *Bridge) heard(c store.Change) {
	switch c.Kind {
	case store.ChangeDevice:
		b.processor.DeviceChanged(c.Tenant, c.Device)
	case store.ChangeTenant:
		b.processor.TenantChanged(c.Tenant)
	case store.ChangeRoutes:
		b.processor.ForgetRoutes(c.Tenant)
	case store.ChangeSettings:
		signal(b.appSettings.changed)
	case store.ChangeListening:
		b.processor.Listening(true)
	case store.ChangeDeaf:
		b.processor.Listening(false)
	default:
		b.processor.EverythingChanged()
		b.processor.ForgetAllRoutes()
		signal(b.appSettings.changed)
	}
}
