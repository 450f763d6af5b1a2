-- error: the table function generate_series() cannot be read by a materialized view
CREATE MATERIALIZED VIEW v AS SELECT n FROM generate_series(1, 10) AS n;
