-- error: a filter of rows between SESSION and GROUP BY cannot be kept in a view
CREATE MATERIALIZED VIEW v AS
SELECT user_id, window_start, count(*) AS events
FROM SESSION(ad_events PARTITION BY user_id, ts, INTERVAL '30 minutes')
WHERE event_type = 'click' GROUP BY user_id, window_start;
