-- error: row_number() without a constant upper bound cannot be kept in a view
CREATE MATERIALIZED VIEW v AS
SELECT ad_id, row_number() OVER (PARTITION BY country ORDER BY ts) AS n FROM ad_events;
