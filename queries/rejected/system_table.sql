-- error: a definition cannot read pg_catalog.pg_class
CREATE MATERIALIZED VIEW v AS SELECT relname FROM pg_catalog.pg_class;
