package store

import (
	"context"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"
)

// announcer is a trigger that migration 00006 made, and the statement that makes it again.
type announcer struct{ table, name, statement string }

var announcers = allAnnouncers()

func allAnnouncers() (all []announcer) {
	add := func(table, name, rest string) {
		all = append(all, announcer{table, name, fmt.Sprintf("CREATE OR REPLACE TRIGGER %s AFTER %s", name, fmt.Sprintf(rest, table))})
	}
	rows := func(table, changed string) {
		add(table, "crossfade_changes_insert", "INSERT ON %s REFERENCING NEW TABLE AS changed FOR EACH STATEMENT EXECUTE FUNCTION "+changed)
		add(table, "crossfade_changes_delete", "DELETE ON %s REFERENCING OLD TABLE AS changed FOR EACH STATEMENT EXECUTE FUNCTION "+changed)
		add(table, "crossfade_changes_update", "UPDATE ON %[1]s REFERENCING OLD TABLE AS rows_before NEW TABLE AS rows_after FOR EACH STATEMENT EXECUTE FUNCTION crossfade_%[1]s_updated()")
		add(table, "crossfade_changes_truncate", `TRUNCATE ON %s FOR EACH STATEMENT EXECUTE FUNCTION crossfade_table_changed('{"a":1}')`)
	}
	rows("subscriptions", "crossfade_tenants_changed('s')")
	rows("device_registry", "crossfade_devices_changed()")
	rows("device_certificates", "crossfade_devices_changed()")
	rows("device_modules", "crossfade_devices_changed()")
	rows("message_routes", "crossfade_tenants_changed('r')")
	add("device_tiers", "crossfade_changes", `INSERT OR UPDATE OR DELETE OR TRUNCATE ON %s FOR EACH STATEMENT EXECUTE FUNCTION crossfade_table_changed('{"a":1}')`)
	add("app_settings", "crossfade_changes", `INSERT OR UPDATE OR DELETE OR TRUNCATE ON %s FOR EACH STATEMENT EXECUTE FUNCTION crossfade_table_changed('{"c":1}')`)
	return all
}

// findSilent finds the triggers that are not there, or do not fire for what clients
// change. Tables that are not there are VerifySchema's concern.
const findSilent = `
SELECT w.n, t.oid IS NOT NULL
  FROM unnest($1::text[], $2::text[]) WITH ORDINALITY AS w (tbl, name, n)
  JOIN pg_class AS c ON c.oid = to_regclass(w.tbl)
  LEFT JOIN pg_trigger AS t ON t.tgrelid = c.oid AND t.tgname = w.name
 WHERE t.oid IS NULL OR t.tgenabled NOT IN ('O', 'A')
 ORDER BY w.n`

// silentTable is one whose changes are not all announced.
type silentTable struct {
	name     string
	triggers []string // missing or disabled
	remedy   []string // statements
}

// silentTables returns the tables whose triggers somebody has dropped or disabled, or
// which somebody has replaced by another.
func silentTables(ctx context.Context, conn *pgx.Conn) (silent []silentTable, err error) {
	var tables, names []string
	for _, a := range announcers {
		tables, names = append(tables, a.table), append(names, a.name)
	}
	rows, err := conn.Query(ctx, findSilent, tables, names)
	if err != nil {
		return nil, err
	}
	var n int
	var disabled bool
	_, err = pgx.ForEachRow(rows, []any{&n, &disabled}, func() error {
		a := announcers[n-1]
		if len(silent) == 0 || silent[len(silent)-1].name != a.table {
			silent = append(silent, silentTable{name: a.table})
		}
		t := &silent[len(silent)-1]
		remedy := a.statement
		if disabled {
			remedy = fmt.Sprintf("ALTER TABLE %s ENABLE TRIGGER %s", a.table, a.name)
		}
		t.triggers, t.remedy = append(t.triggers, a.name), append(t.remedy, remedy)
		return nil
	})
	return silent, err
}

func (l *listener) tellSilent(silent []silentTable) {
	for _, t := range silent {
		l.Logger.Warn("changes of a table are not announced, for triggers of it are missing or disabled: they take effect when caches are too old (--pipeline-registry-ttl)",
			"table", t.name, "triggers", strings.Join(t.triggers, ", "), "remedy", "have its owner run: "+strings.Join(t.remedy, "; "))
	}
}
