package store

import (
	"context"
	"errors"

	"github.com/jackc/pgx/v5"

	"github.com/crossfade-io/crossfade/pipeline/route"
)

// findRoutes reads every column as text: in adopted databases keys may be integers
// or uuids, JSON may stand in text columns, and is_enabled may be a number. The
// order is that in which a message's rows enter the outbox.
const findRoutes = `
SELECT tenant_id::text, coalesce(id::text, ''),
       pg_typeof(id) IN ('smallint'::regtype, 'integer'::regtype, 'bigint'::regtype, 'numeric'::regtype),
       coalesce(topic_filter::text, ''), coalesce(destination_type::text, ''),
       coalesce(destination_config::text, ''), coalesce(payload_filter::text, '')
  FROM message_routes
 WHERE tenant_id::text = ANY($1) AND lower(is_enabled::text) IN ('true', 't', '1', 'yes', 'on')
 ORDER BY tenant_id, id`

// errSameID is for adopted tables whose id is no key: of two publications under one ID
// the stream drops the second.
var errSameID = errors.New("id is that of another route of this tenant; repeats of a message are told by it")

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
	rows, err := s.pool.Query(ctx, findRoutes, names)
	if err != nil {
		return nil, nil, translate("look up routes", err)
	}
	lists := make(map[string][]*route.Route)
	var r, before route.Row
	columns := []any{&r.Tenant, &r.ID, &r.NumericID, &r.TopicFilter, &r.DestinationType, &r.DestinationConfig, &r.PayloadFilter}
	_, err = pgx.ForEachRow(rows, columns, func() error {
		compiled, err := route.Compile(r)
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
