package bridge

import (
	"context"

	"github.com/crossfade-io/crossfade/bridge/rollout"
)

// driveRollouts carries rollouts out, whenever no other instance does.
func (b *Bridge) driveRollouts(ctx context.Context) {
	o := rollout.DefaultOptions()
	o.Pool, o.Logger = b.store.Pool(), b.log
	if err := rollout.Drive(ctx, o); err != nil {
		b.log.Error("rollouts are not carried out by this instance", "error", err)
	}
}
