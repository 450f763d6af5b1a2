-- error: SESSION cannot use INTERVAL '1 month'
CREATE MATERIALIZED VIEW v AS
SELECT user_id, window_start, count(*) AS events FROM SESSION(ad_events, ts, INTERVAL '1 month') GROUP BY user_id, window_start;
