-- error: LIMIT without ORDER BY cannot be kept in a view
CREATE MATERIALIZED VIEW v AS SELECT ad_id FROM ad_events LIMIT 10;
