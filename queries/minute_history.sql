-- Two years of minutes: each minute of each ad is written once, when no event can change it any more, and never touched
-- again. What is older than the retention is forgotten.
--
-- A day of one ad, by the hour:
--   SELECT date_trunc('hour', window_start) AS hour, sum(clicks) AS clicks, sum(impressions) AS impressions
--   FROM ad_minutes
--   WHERE ad_id = 42 AND window_start >= '2026-01-01' AND window_start < '2026-01-02'
--   GROUP BY hour ORDER BY hour;

CREATE MATERIALIZED VIEW ad_minutes WITH (retention = '730 days') AS
SELECT ad_id, window_start, window_end,
       count(*) FILTER (WHERE event_type = 'click')      AS clicks,
       count(*) FILTER (WHERE event_type = 'impression') AS impressions
FROM TUMBLE(ad_events, ts, INTERVAL '1 minute')
GROUP BY ad_id, window_start, window_end
EMIT ON WINDOW CLOSE;
