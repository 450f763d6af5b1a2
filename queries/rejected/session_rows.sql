-- error: rows with the bounds of their sessions cannot be kept in a view
CREATE MATERIALIZED VIEW v AS
SELECT user_id, event_id, window_start FROM SESSION(ad_events PARTITION BY user_id, ts, INTERVAL '30 minutes');
