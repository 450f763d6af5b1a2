-- error: now() cannot be kept in a view yet
CREATE MATERIALIZED VIEW v AS SELECT ad_id FROM ad_events WHERE ts > now() - INTERVAL '1 hour';
