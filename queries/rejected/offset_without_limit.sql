-- error: OFFSET without LIMIT cannot be kept in a view
CREATE MATERIALIZED VIEW v AS SELECT ad_id, ts FROM ad_events ORDER BY ts OFFSET 10;
