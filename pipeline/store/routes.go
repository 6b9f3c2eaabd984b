package store

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/crossfade-io/crossfade/pipeline/route"
)

// Bounds of a tenant's routes. Each match writes a row, so these bound what one message
// writes; and all routes of the tenants that are heard from are in memory. What is in the
// JSON columns goes out with every message of the route.
const (
	maxRoutes      = 10_000
	maxRouteBytes  = 256 << 10 // of one route's filters and configuration
	maxRoutesBytes = 16 << 20  // of all of a tenant's
)

// findRoutes reads every column as text: in adopted databases keys may be integers
// or uuids, JSON may stand in text columns, and is_enabled may be a number. The
// order is that in which a message's rows enter the outbox. Of what is beyond the
// bounds ($2 to $4, as above) it returns no text.
const findRoutes = `
WITH enabled AS (
    SELECT tenant_id, id, coalesce(topic_filter::text, '') AS topic, coalesce(destination_type::text, '') AS kind,
           coalesce(destination_config::text, '') AS config, coalesce(payload_filter::text, '') AS payload
      FROM message_routes
     WHERE tenant_id::text = ANY($1) AND lower(is_enabled::text) IN ('true', 't', '1', 'yes', 'on')
), measured AS (
    SELECT *, octet_length(topic)::int8 + octet_length(kind) + octet_length(config) + octet_length(payload) AS bytes FROM enabled
), counted AS (
    SELECT *, row_number() OVER w AS n, sum(bytes) FILTER (WHERE bytes <= $3) OVER w AS total
      FROM measured WINDOW w AS (PARTITION BY tenant_id ORDER BY id ROWS UNBOUNDED PRECEDING)
)
SELECT tenant_id::text, coalesce(id::text, ''),
       pg_typeof(id) IN ('smallint'::regtype, 'integer'::regtype, 'bigint'::regtype, 'numeric'::regtype),
       CASE WHEN fits THEN topic ELSE '' END, CASE WHEN fits THEN kind ELSE '' END,
       CASE WHEN fits THEN config ELSE '' END, CASE WHEN fits THEN payload ELSE '' END,
       bytes, n > $2 OR coalesce(total, 0) > $4
  FROM (SELECT *, bytes <= $3 AND total <= $4 AS fits FROM counted WHERE n <= $2 + 1) AS c
 ORDER BY tenant_id, id`

// errSameID is for adopted tables whose id is no key: of two publications under one ID
// the stream drops the second.
var errSameID = errors.New("id is that of another route of this tenant; repeats of a message are told by it")

// errTooMany is of the first route that is beyond what a tenant may have.
var errTooMany = fmt.Errorf("it and the tenant's routes with higher ids are too many: %d, and %d MiB of filters and configuration, are the most that are enabled at a time; let fewer routes with wildcards take their messages, and the service behind routes.> choose", maxRoutes, maxRoutesBytes>>20)

// Routes looks up the enabled routes of tenants, all in one query. A tenant that is
// not in the result has none that is published. Rows that cannot be read come back as
// problems, and hold up no other.
func (s *Store) Routes(ctx context.Context, tenants []string) (sets map[string]*route.Set, problems []route.Problem, err error) {
	sets = make(map[string]*route.Set)
	var names []string
	for _, t := range tenants {
		if storableText(t) {
			names = append(names, t)
		}
	}
	if len(names) == 0 {
		return sets, nil, nil
	}
	rows, err := s.pool.Query(ctx, findRoutes, names, maxRoutes, maxRouteBytes, maxRoutesBytes)
	if err != nil {
		return nil, nil, translate("look up routes", err)
	}
	lists := make(map[string][]*route.Route)
	var r, before route.Row
	var bytes int64
	var beyond bool
	full := make(map[string]bool) // tenants that have more than they may
	columns := []any{&r.Tenant, &r.ID, &r.NumericID, &r.TopicFilter, &r.DestinationType, &r.DestinationConfig, &r.PayloadFilter, &bytes, &beyond}
	_, err = pgx.ForEachRow(rows, columns, func() error {
		if full[r.Tenant] {
			return nil
		}
		compiled, err := compile(r, bytes, beyond)
		full[r.Tenant] = beyond
		if err == nil && r.Tenant == before.Tenant && r.ID == before.ID {
			err = errSameID
		}
		if before = r; err != nil {
			problems = append(problems, route.Problem{Tenant: r.Tenant, ID: r.ID, Err: err})
			return nil
		}
		lists[r.Tenant] = append(lists[r.Tenant], compiled)
		return nil
	})
	if err != nil {
		return nil, nil, translate("look up routes", err)
	}
	for tenant, list := range lists {
		if set := route.NewSet(list); set != nil {
			sets[tenant] = set
		}
	}
	return sets, problems, nil
}

// compile reads a route that is within bounds.
func compile(r route.Row, bytes int64, beyond bool) (*route.Route, error) {
	switch {
	case beyond:
		return nil, errTooMany
	case bytes > maxRouteBytes:
		return nil, fmt.Errorf("topic_filter, destination_config and payload_filter are %d bytes, %d are the most, since every message of the route carries them; keep what is long elsewhere, and its name here", bytes, maxRouteBytes)
	}
	return route.Compile(r)
}
