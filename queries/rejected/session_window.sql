-- error: SESSION windows are not kept incrementally yet
CREATE MATERIALIZED VIEW v AS
SELECT user_id, window_start, count(*) AS events FROM SESSION(ad_events, ts, INTERVAL '30 minutes') GROUP BY user_id, window_start;
