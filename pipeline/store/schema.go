package store

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/crossfade-io/crossfade/migrations"
)

// SchemaProblem is one thing about the database that ingest cannot work with.
type SchemaProblem struct {
	Subject string // table, table.column, or "migrations"
	Have    string
	Want    string
	Remedy  string // a command or an SQL statement
}

func (p SchemaProblem) String() string {
	return fmt.Sprintf("%s: have %s, want %s; %s", p.Subject, p.Have, p.Want, p.Remedy)
}

// SchemaError lists every problem that VerifySchema found, so that an operator
// mends them in one go.
type SchemaError struct{ Problems []SchemaProblem }

func (e *SchemaError) Error() string {
	lines := make([]string, len(e.Problems))
	for i, p := range e.Problems {
		lines[i] = p.String()
	}
	return fmt.Sprintf("the database's schema does not fit (%d found):\n  %s", len(lines), strings.Join(lines, "\n  "))
}

// Unwrap makes errors.Is(err, ErrSchema) true.
func (e *SchemaError) Unwrap() error { return ErrSchema }

// Types as pg_type names them. What is written by binary COPY must have exactly
// the width that is sent; a varchar takes what a text takes.
var (
	asText    = []string{"text", "varchar"}
	asTime    = []string{"timestamptz"}
	asJSON    = []string{"jsonb"}
	asBigint  = []string{"int8"}
	asCounter = []string{"int8", "int4"} // written by SQL, which converts
	asVersion = asCounter
	asSmall   = []string{"int2"}
	asUUID    = []string{"uuid"}
	asBytes   = []string{"bytea"}
	asDouble  = []string{"float8"}
	asDegrees = []string{"float8", "float4", "numeric"} // written by SQL; no value is out of their range
)

// ddlName is how a type is called in an ALTER TABLE.
var ddlName = map[string]string{"int8": "bigint", "int4": "integer", "int2": "smallint", "float8": "double precision"}

type columnSpec struct {
	name  string
	types []string // the first is the one to change to
	null  bool     // ingest writes NULL here
}

type tableSpec struct {
	name    string
	columns []columnSpec
	key     []string // a unique index that INSERT … ON CONFLICT needs; nil for none
}

// writtenTables are every table and column that ingest writes.
var writtenTables = []tableSpec{
	{name: "telemetry", columns: []columnSpec{
		{"time", asTime, false}, {"tenant_id", asText, false}, {"device_id", asText, false}, {"site_id", asText, false},
		{"msg_type", asText, false}, {"seq", asBigint, true}, {"metrics", asJSON, false},
	}},
	{name: "quarantine_events", columns: []columnSpec{
		{"ingested_at", asTime, false}, {"event_ts", asTime, true}, {"topic", asText, true}, {"tenant_id", asText, true},
		{"site_id", asText, true}, {"device_id", asText, true}, {"msg_type", asText, true}, {"reason", asText, false},
		{"payload", asJSON, true}, {"path", asSmall, true}, {"message_id", asUUID, true}, {"raw", asBytes, true}, {"detail", asText, true},
		{"username", asText, true}, {"origin", asSmall, true},
	}},
	{name: "quarantine_counters_minute", key: []string{"bucket_minute", "tenant_id", "reason"}, columns: []columnSpec{
		{"bucket_minute", asTime, false}, {"tenant_id", asText, false}, {"reason", asText, false}, {"cnt", asCounter, false},
	}},
	{name: "device_state", key: []string{"tenant_id", "device_id"}, columns: []columnSpec{
		{"tenant_id", asText, false}, {"device_id", asText, false}, {"site_id", asText, true},
		{"last_seen_at", asTime, true}, {"last_telemetry_at", asTime, true}, {"last_heartbeat_at", asTime, true},
		{"reported_state", asJSON, false}, {"reported_version", asVersion, false}, {"shadow_updated_at", asTime, true},
		{"crossfade_located_at", asTime, true},
	}},
	{name: "device_sensors", key: []string{"tenant_id", "device_id", "metric_key"}, columns: []columnSpec{
		{"tenant_id", asText, false}, {"device_id", asText, false}, {"metric_key", asText, false},
		{"display_name", asText, false}, {"unit", asText, true}, {"status", asText, false}, {"source", asText, false},
		{"last_value", asDouble, true}, {"last_value_text", asText, true}, {"last_seen_at", asTime, false},
	}},
	{name: "crossfade_ledger", key: []string{"message_id"}, columns: []columnSpec{
		{"message_id", asUUID, false}, {"path", asSmall, false}, {"outcome", asSmall, false},
		{"digest", asBigint, true}, {"occurred_at", asTime, true}, {"committed_at", asTime, false},
	}},
	{name: "crossfade_outbox", columns: []columnSpec{
		{"lane", asSmall, false}, {"tenant_id", asText, false}, {"device_id", asText, false}, {"route_id", asText, false},
		{"message_id", asUUID, false}, {"body", asBytes, false},
	}},
}

// updatedTables are tables in which ingest changes rows that others insert: columns
// beyond these are none of our business.
var updatedTables = []tableSpec{
	{name: "device_commands", columns: []columnSpec{
		{"tenant_id", asText, false}, {"command_id", asText, false}, {"device_id", asText, false}, {"status", asText, false},
		{"acked_at", asTime, false}, {"ack_details", asJSON, true},
	}},
	{name: "device_registry", columns: []columnSpec{
		{"tenant_id", asText, false}, {"device_id", asText, false},
		{"latitude", asDegrees, false}, {"longitude", asDegrees, false}, {"location_source", asText, false},
	}},
}

// readTables are tables that ingest only reads, and of which it must see every
// row: a plan, route or limit that row security hides would be one that is not there.
var readTables = []string{"subscriptions", "device_tiers", "device_certificates", "device_modules", "message_routes", "app_settings"}

// VerifySchema checks, before ingest starts, that the database has every table
// and column that ingest writes, of types it can write; that nothing else in
// these tables refuses its rows; and that no migration is pending. It only reads
// the catalogue. What does not fit is a *SchemaError; another error means that
// the catalogue could not be read.
func VerifySchema(ctx context.Context, conn migrations.Querier) error {
	var problems []SchemaProblem
	pending, err := migrations.Pending(ctx, conn)
	if err != nil {
		return translate("verify the schema", err)
	}
	if len(pending) > 0 {
		names := make([]string, len(pending))
		for i, m := range pending {
			names[i] = m.Name
		}
		problems = append(problems, SchemaProblem{"migrations", "pending: " + strings.Join(names, ", "), "none pending", "run `crossfade migrate`"})
	}
	tables, err := loadTables(ctx, conn)
	if err != nil {
		return translate("verify the schema: read the catalogue", err)
	}
	for _, spec := range writtenTables {
		problems = append(problems, spec.verify(tables[spec.name], true)...)
	}
	for _, spec := range updatedTables {
		problems = append(problems, spec.verify(tables[spec.name], false)...)
	}
	for _, name := range readTables {
		problems = append(problems, tableSpec{name: name}.verifyRead(tables[name])...)
	}
	if len(problems) > 0 {
		return &SchemaError{problems}
	}
	return nil
}

// catalogTable is a table as the database has it.
type catalogTable struct {
	columns     map[string]catalogColumn
	uniqueKeys  [][]string // sorted column names
	rowSecurity bool       // policies apply to us
	mayRead     bool
	mayInsert   bool
	mayUpdate   bool
}

type catalogColumn struct {
	typname    string // of the base type, for a domain
	display    string // as written in SQL, e.g. character varying(64)
	notNull    bool
	hasDefault bool
	generated  bool // computed: nobody can write it
}

func (s tableSpec) verify(have *catalogTable, inserts bool) []SchemaProblem {
	if have == nil {
		return []SchemaProblem{{s.name, "no such table on the search_path", "the table", "run `crossfade migrate`"}}
	}
	var problems []SchemaProblem
	for _, want := range s.columns {
		column, ok := have.columns[want.name]
		if p := want.verify(s.name, column, ok); p != nil {
			problems = append(problems, *p)
		}
	}
	if inserts {
		problems = append(problems, s.verifyInsert(have)...)
	}
	if have.rowSecurity {
		problems = append(problems, s.rowSecurityProblem("a role that writes for all tenants"))
	}
	if inserts && !have.mayInsert || !inserts && !(have.mayUpdate && have.mayRead) {
		problems = append(problems, SchemaProblem{s.name, "no privilege to read and write", "SELECT, INSERT, UPDATE", "GRANT SELECT, INSERT, UPDATE, DELETE ON " + s.name + " TO this role"})
	}
	return problems
}

func (s tableSpec) verifyRead(have *catalogTable) []SchemaProblem {
	switch {
	case have == nil:
		return []SchemaProblem{{s.name, "no such table on the search_path", "the table", "run `crossfade migrate`"}}
	case !have.mayRead:
		return []SchemaProblem{{s.name, "no privilege to read", "SELECT", "GRANT SELECT ON " + s.name + " TO this role"}}
	case have.rowSecurity:
		return []SchemaProblem{s.rowSecurityProblem("a role that reads for all tenants")}
	}
	return nil
}

func (s tableSpec) rowSecurityProblem(want string) SchemaProblem {
	return SchemaProblem{s.name, "row-level security that applies to this role (COPY is refused, and rows are hidden)", want,
		"ALTER ROLE … BYPASSRLS, or run as the table's owner without FORCE ROW LEVEL SECURITY"}
}

func (c columnSpec) verify(table string, have catalogColumn, exists bool) *SchemaProblem {
	subject := table + "." + c.name
	ddl := c.types[0]
	if name, ok := ddlName[ddl]; ok {
		ddl = name
	}
	switch {
	case !exists:
		return &SchemaProblem{subject, "no such column", ddl,
			fmt.Sprintf("run `crossfade migrate`, or if none is pending: ALTER TABLE %s ADD COLUMN %s %s", table, c.name, ddl)}
	case have.generated:
		return &SchemaProblem{subject, "a generated column", "a column that can be written",
			fmt.Sprintf("ALTER TABLE %s ALTER COLUMN %s DROP EXPRESSION", table, c.name)}
	case !slices.Contains(c.types, have.typname):
		return &SchemaProblem{subject, have.display, ddl, usedBy[subject] + fmt.Sprintf("ALTER TABLE %s ALTER COLUMN %s TYPE %s%s", table, c.name, ddl, using(have.typname, c.name, ddl))}
	case c.null && have.notNull:
		return &SchemaProblem{subject, "NOT NULL", "a column that can be NULL", fmt.Sprintf("ALTER TABLE %s ALTER COLUMN %s DROP NOT NULL", table, c.name)}
	}
	return nil
}

// usedBy is what PostgreSQL wants gone before it changes a column's type.
var usedBy = map[string]string{
	"device_state.tenant_id":       desiredTriggers,
	"device_state.device_id":       desiredTriggers,
	"device_state.desired_state":   desiredTriggers,
	"device_state.desired_version": desiredTriggers,
	"device_commands.status":       "drop the index crossfade_commands_queued first and make it again afterwards (pg_get_indexdef shows how): ",
}

const desiredTriggers = "drop the triggers crossfade_desired_… of device_state first and make them again afterwards (pg_get_triggerdef shows how): "

// using is the conversion without which ALTER … TYPE would fail, or would take
// the session's time zone for a time that was meant as UTC.
func using(from, column, to string) string {
	if from == "timestamp" && to == "timestamptz" {
		return fmt.Sprintf(" USING %s AT TIME ZONE 'UTC'", column)
	}
	return fmt.Sprintf(" USING %s::%s", column, to)
}

func (s tableSpec) verifyInsert(have *catalogTable) []SchemaProblem {
	var problems []SchemaProblem
	foreign := make([]string, 0, len(have.columns))
	for name, column := range have.columns {
		ours := slices.ContainsFunc(s.columns, func(c columnSpec) bool { return c.name == name })
		if !ours && column.notNull && !column.hasDefault {
			foreign = append(foreign, name)
		}
	}
	slices.Sort(foreign)
	for _, name := range foreign {
		problems = append(problems, SchemaProblem{s.name + "." + name, "NOT NULL without a default", "a default, or NULL allowed (ingest does not write it)",
			fmt.Sprintf("ALTER TABLE %s ALTER COLUMN %s DROP NOT NULL", s.name, pgx.Identifier{name}.Sanitize())})
	}
	want := slices.Sorted(slices.Values(s.key))
	if s.key != nil && !slices.ContainsFunc(have.uniqueKeys, func(k []string) bool { return slices.Equal(k, want) }) {
		columns := strings.Join(s.key, ", ")
		problems = append(problems, SchemaProblem{s.name, "no unique index on (" + columns + ")", "one (INSERT … ON CONFLICT needs it)",
			fmt.Sprintf("CREATE UNIQUE INDEX ON %s (%s)", s.name, columns)})
	}
	return problems
}

// loadTables reads what the catalogue says about the tables of all lists. A table
// that is not on the search_path has no entry.
func loadTables(ctx context.Context, conn migrations.Querier) (map[string]*catalogTable, error) {
	names := slices.Clone(readTables)
	for _, spec := range slices.Concat(writtenTables, updatedTables) {
		names = append(names, spec.name)
	}
	rows, err := conn.Query(ctx, `
		SELECT w.name, c.oid IS NOT NULL,
		       coalesce(row_security_active(c.oid), false), coalesce(has_table_privilege(c.oid, 'SELECT'), false),
		       coalesce(has_table_privilege(c.oid, 'INSERT'), false), coalesce(has_table_privilege(c.oid, 'UPDATE'), false),
		       ARRAY(SELECT (SELECT string_agg(a.attname, ',' ORDER BY a.attname COLLATE "C")
		                     FROM pg_attribute a
		                     WHERE a.attrelid = i.indrelid AND a.attnum = ANY ((i.indkey::int2[])[0:i.indnkeyatts - 1]))
		             FROM pg_index i
		             WHERE i.indrelid = c.oid AND i.indisunique AND i.indimmediate AND i.indisvalid
		               AND i.indpred IS NULL AND i.indexprs IS NULL)
		FROM unnest($1::text[]) AS w (name)
		LEFT JOIN pg_class c ON c.oid = to_regclass(quote_ident(w.name))`, names)
	if err != nil {
		return nil, err
	}
	tables := make(map[string]*catalogTable)
	var name string
	var exists bool
	var keys []string
	have := catalogTable{}
	if _, err := pgx.ForEachRow(rows, []any{&name, &exists, &have.rowSecurity, &have.mayRead, &have.mayInsert, &have.mayUpdate, &keys}, func() error {
		if exists {
			table := have
			table.columns = make(map[string]catalogColumn)
			for _, key := range keys {
				table.uniqueKeys = append(table.uniqueKeys, strings.Split(key, ","))
			}
			tables[name] = &table
		}
		return nil
	}); err != nil {
		return nil, err
	}
	return tables, readColumns(ctx, conn, names, tables)
}

func readColumns(ctx context.Context, conn migrations.Querier, names []string, tables map[string]*catalogTable) error {
	rows, err := conn.Query(ctx, `
		SELECT w.name, a.attname, coalesce(b.typname, t.typname), format_type(a.atttypid, a.atttypmod), a.attnotnull,
		       a.atthasdef OR a.attidentity <> '', a.attgenerated <> ''
		FROM unnest($1::text[]) AS w (name)
		JOIN pg_attribute a ON a.attrelid = to_regclass(quote_ident(w.name)) AND a.attnum > 0 AND NOT a.attisdropped
		JOIN pg_type t ON t.oid = a.atttypid
		LEFT JOIN pg_type b ON b.oid = t.typbasetype`, names)
	if err != nil {
		return err
	}
	var table, column string
	var have catalogColumn
	_, err = pgx.ForEachRow(rows, []any{&table, &column, &have.typname, &have.display, &have.notNull, &have.hasDefault, &have.generated}, func() error {
		if t := tables[table]; t != nil {
			t.columns[column] = have
		}
		return nil
	})
	return err
}
