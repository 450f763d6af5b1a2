-- error: watermark() cannot be kept in a view yet
CREATE MATERIALIZED VIEW v AS SELECT ad_id FROM ad_events WHERE ts > watermark('ad_events') - INTERVAL '1 hour';
