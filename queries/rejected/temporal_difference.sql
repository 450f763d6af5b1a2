-- error: a condition on the difference of a column and a clock cannot be kept in a view
CREATE MATERIALIZED VIEW v AS SELECT ad_id FROM ad_events WHERE now() - ts < INTERVAL '1 hour';
