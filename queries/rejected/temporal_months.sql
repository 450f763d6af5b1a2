-- error: months and years have no fixed length beside a clock in a view
CREATE MATERIALIZED VIEW v AS SELECT ad_id FROM ad_events WHERE ts > now() - INTERVAL '1 month';
