-- error: the view would hold each row 3600 times
CREATE MATERIALIZED VIEW v AS
SELECT ad_id, window_start FROM HOP(ad_events, ts, INTERVAL '1 second', INTERVAL '1 hour');
