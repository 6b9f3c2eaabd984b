-- Flags: which stage the operator wishes for each tenant. What a tenant's stage
-- in fact is stands in the stage tables; nothing here moves a message by itself.
--
-- Locks: only new tables are made, so nothing that exists is locked. In use, a
-- write takes row locks on the rows that it names, in order of the tenant, and
-- the server's notification queue lock for the moment of its commit. Readers
-- (every instance's snapshot, `crossfade status`) never wait for writers.

-- +goose Up

-- One row per flag: what holds for a tenant that has no row of its own.
CREATE TABLE crossfade_flag_rules (
    flag_key        text NOT NULL PRIMARY KEY
                    CHECK (length(flag_key) BETWEEN 1 AND 128),
    default_variant text NOT NULL DEFAULT 'mqtt'
                    CHECK (default_variant IN ('mqtt', 'shadow', 'live', 'jetstream')),
    -- Percent of the tenants that get percent_variant, by stable hash. Two
    -- decimals, because the hash has 10,000 buckets: what the operator typed is
    -- what is compared, without rounding on the way.
    percent         numeric(5, 2) NOT NULL DEFAULT 0
                    CHECK (percent BETWEEN 0 AND 100),
    percent_variant text
                    CHECK (percent_variant IN ('mqtt', 'shadow', 'live', 'jetstream')),
    updated_by      text NOT NULL DEFAULT ''
                    CHECK (length(updated_by) <= 128),
    updated_at      timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT crossfade_flag_rules_percent_needs_variant
                    CHECK (percent = 0 OR percent_variant IS NOT NULL)
);

-- One row per tenant for whom somebody decided. It wins over the rule.
CREATE TABLE crossfade_flag_targets (
    flag_key   text NOT NULL
               CHECK (length(flag_key) BETWEEN 1 AND 128),
    tenant_id  text NOT NULL
               CHECK (length(tenant_id) BETWEEN 1 AND 256),
    variant    text NOT NULL
               CHECK (variant IN ('mqtt', 'shadow', 'live', 'jetstream')),
    reason     text NOT NULL DEFAULT ''
               CHECK (length(reason) <= 512),
    updated_by text NOT NULL DEFAULT ''
               CHECK (length(updated_by) <= 128),
    updated_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (flag_key, tenant_id)
);

-- The row is written out, not implied: where it is missing, the flag has no
-- answer and every tenant stays where it is, so that an emptied table does not
-- read as "everybody back to mqtt".
INSERT INTO crossfade_flag_rules (flag_key, updated_by) VALUES ('ingest-source', 'migration');

-- Tells every instance to read the tables again. Once per statement and without
-- a payload: PostgreSQL folds equal notifications of one transaction into one,
-- so flipping ten thousand tenants wakes an instance once.
-- +goose StatementBegin
CREATE FUNCTION crossfade_flags_notify() RETURNS trigger
    LANGUAGE plpgsql AS
$$
BEGIN
    PERFORM pg_notify('crossfade_flags', '');
    RETURN NULL;
END
$$;
-- +goose StatementEnd

CREATE TRIGGER crossfade_flag_rules_notify
    AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON crossfade_flag_rules
    FOR EACH STATEMENT EXECUTE FUNCTION crossfade_flags_notify();

CREATE TRIGGER crossfade_flag_targets_notify
    AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON crossfade_flag_targets
    FOR EACH STATEMENT EXECUTE FUNCTION crossfade_flags_notify();

-- +goose Down

-- Takes ACCESS EXCLUSIVE on both tables. Running instances lose their answers
-- and hold every tenant where it is.
DROP TABLE crossfade_flag_targets;
DROP TABLE crossfade_flag_rules;
DROP FUNCTION crossfade_flags_notify();
