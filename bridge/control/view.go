package control

import (
	"context"
	"fmt"
	"maps"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/crossfade-io/crossfade/bridge/stage"
	"github.com/crossfade-io/crossfade/internal/backoff"
)

// readPatience bounds a reading of the facts on a connection that hangs.
const readPatience = 10 * time.Second

// factsPause is the least between two readings of the facts, however many
// notifications come.
const factsPause = 20 * time.Millisecond

// view is what an instance decides by: all facts up to an epoch, read under a lease.
// It does not change once it is in force.
type view struct {
	stages map[string]position
	epoch  int64
	lease  uint64 // the number of the lease under which it was read; 0: none

	era       string
	continues *int64 // the last epoch of the era before; nil: what was known of that one is void
	sure      bool   // what others know cannot be another history any more
}

type position struct {
	stage stage.Stage
	epoch int64
}

// readFacts returns, in one snapshot, the newest epoch and what era it is in, how many
// rows there are, and those that came after $1.
const readFacts = `
WITH e AS MATERIALIZED (
    SELECT epoch, era, continues, ` + sameHistory + ` AND settles_at <= now() AS sure, pg_is_in_recovery() AS copied,
           (SELECT count(*) FROM crossfade_stages) AS tenants
      FROM crossfade_epoch AS e
)
SELECT e.epoch, e.era, e.continues, e.sure, e.copied, e.tenants, s.tenant_id, ` + inside + `, s.epoch, s.revision, s.changed_by
  FROM e LEFT JOIN crossfade_stages AS s ON s.epoch > $1`

// load reads what has changed of the facts and puts it in force; all of it when full.
// A confirmation is due afterwards.
func (c *Control) load(ctx context.Context, full bool) error {
	c.reading.Lock()
	defer c.reading.Unlock()
	// Others wait meanwhile, the renewal of the lease among them.
	ctx, cancel := context.WithTimeout(ctx, readPatience)
	defer cancel()
	lease := c.lease.Load().number // before the reading: that is what the view is worth
	before := c.view.Load()
	// After a lapse everything is read: what is newer may be the start of another history,
	// when PostgreSQL has lost its last commits in the meantime.
	full = full || before.lease != lease
	next, changed, err := c.read(ctx, before, full)
	if err == nil && next == nil { // rows were removed, or an older state was brought back
		next, changed, err = c.read(ctx, before, true)
	}
	if err != nil {
		return err
	}
	lost := next.lost(c.known)
	next.lease, next.sure = lease, next.sure && !lost
	c.view.Store(next)
	if changed {
		c.o.Moved()
	}
	if next.epoch != before.epoch || next.era != before.era || before.lease != lease {
		signal(c.told)
	}
	if lost {
		return c.doubt(ctx, next)
	}
	c.known = history{next.era, next.epoch}
	return nil
}

// read returns the next view and whether some tenant's stage differs; nil where what
// came after the present one does not lead to it.
func (c *Control) read(ctx context.Context, before *view, full bool) (*view, bool, error) {
	since := before.epoch
	if full {
		since = -1
	}
	rows, err := c.o.Pool.Query(ctx, readFacts, since)
	if err != nil {
		return nil, false, fmt.Errorf("read crossfade_stages: %w", err)
	}
	next := &view{stages: before.stages}
	if full {
		next.stages = make(map[string]position, len(before.stages))
	}
	own := full // next's map is its own: what is in force never changes
	var count, seen int
	var copied bool
	var tenant, name, by *string
	var epoch, revision *int64
	_, err = pgx.ForEachRow(rows, []any{&next.epoch, &next.era, &next.continues, &next.sure, &copied, &count, &tenant, &name, &epoch, &revision, &by}, func() error {
		seen++
		if tenant == nil {
			return nil
		}
		if !own {
			next.stages, own = maps.Clone(before.stages), true
		}
		s := stage.Stage(*name)
		if was := before.stage(*tenant, c.standard); was.Authoritative() != s.Authoritative() {
			c.log.Info("authority", "tenant", *tenant, "stage", s, "path", s.Authoritative().String(), "revision", *revision, "changed_by", text(by))
		}
		next.stages[*tenant] = position{s, *epoch}
		return nil
	})
	switch {
	case err != nil:
		return nil, false, fmt.Errorf("read crossfade_stages: %w", err)
	case seen == 0:
		return nil, false, fmt.Errorf("read crossfade_stages: crossfade_epoch has no row: somebody has emptied it; insert (epoch) as the greatest of crossfade_stages")
	case copied:
		return nil, false, fmt.Errorf("read crossfade_stages: %w", errStandby)
	case !full && (len(next.stages) != count || next.epoch < before.epoch || next.era != before.era):
		return nil, false, nil
	}
	return next, own && c.differ(before, next), nil
}

// stage is a tenant's stage in a view.
func (v *view) stage(tenant string, standard stage.Stage) stage.Stage {
	if p, ok := v.stages[tenant]; ok {
		return p.stage
	}
	return standard
}

// differ reports whether some tenant's stage is another in two views.
func (c *Control) differ(a, b *view) bool {
	for tenant, p := range b.stages {
		if a.stage(tenant, c.standard) != p.stage {
			return true
		}
	}
	for tenant, p := range a.stages { // rows that somebody removed
		if b.stage(tenant, c.standard) != p.stage {
			return true
		}
	}
	return false
}

func text(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}

// followFacts loads what changes when told, and everything on the beat, until ctx ends.
func (c *Control) followFacts(ctx context.Context) {
	beat := time.NewTicker(c.o.Beat)
	defer beat.Stop()
	full := false
	for ctx.Err() == nil {
		err := c.load(ctx, full)
		c.note(ctx, &c.unread, err, "stages cannot be read; every tenant stays where it is")
		backoff.Sleep(ctx, factsPause)
		select {
		case <-ctx.Done():
		case <-c.stale:
			full = false
		case <-beat.C:
			full = true
		}
	}
}
