-- error: this condition on a clock cannot be kept in a view
CREATE MATERIALIZED VIEW v AS SELECT ad_id FROM ad_events WHERE ts > now() - INTERVAL '1 hour' OR country = 'DE';
