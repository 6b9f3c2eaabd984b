package bridge

import (
	"context"

	"github.com/crossfade-io/crossfade/bridge/downlink"
)

// makeDownlink makes what sends to devices, which is the same in every stage and knows
// nothing of the sources.
func (b *Bridge) makeDownlink() (err error) {
	if b.config.Downlink == nil {
		return nil
	}
	o := *b.config.Downlink
	o.Pool, o.Registry, o.Logger = b.store.Pool(), b.registry, b.log.With("part", "downlink")
	o.MQTT.Logger = o.Logger
	b.downlink, err = downlink.New(o)
	return err
}

// sendDown sends to devices until ctx ends; without a sender it keeps small what
// waits for one.
func (b *Bridge) sendDown(ctx context.Context) {
	if b.downlink == nil {
		downlink.KeepTidy(ctx, b.store.Pool(), b.log)
		return
	}
	b.downlink.Run(ctx)
}
