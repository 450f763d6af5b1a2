-- The Top-100 ads over the last minute, ten minutes and hour, by country if wanted: K, window and filter are free at the
-- time of asking. Three views of one source share one store, so an event is counted once, whatever the windows. Windows
-- begin every 10 seconds.
--
-- The last minute, up to now (the newest window holds 10 seconds only; live_window_end names the one that holds it all):
--   SELECT ad_id, sum(clicks) AS clicks FROM ad_1m
--   WHERE window_end = live_window_end('ad_1m')
--   GROUP BY ad_id ORDER BY clicks DESC LIMIT 100;
--
-- The last full hour, in Germany:
--   SELECT ad_id, clicks, impressions FROM ad_1h
--   WHERE window_end = closed_window_end('ad_1h') AND country = 'DE'
--   ORDER BY clicks DESC LIMIT 100;

CREATE MATERIALIZED VIEW ad_1m AS
SELECT ad_id, country, window_start, window_end,
       count(*) FILTER (WHERE event_type = 'click')      AS clicks,
       count(*) FILTER (WHERE event_type = 'impression') AS impressions
FROM HOP(ad_events, ts, INTERVAL '10 seconds', INTERVAL '1 minute')
GROUP BY ad_id, country, window_start, window_end;

CREATE MATERIALIZED VIEW ad_10m AS
SELECT ad_id, country, window_start, window_end,
       count(*) FILTER (WHERE event_type = 'click')      AS clicks,
       count(*) FILTER (WHERE event_type = 'impression') AS impressions
FROM HOP(ad_events, ts, INTERVAL '10 seconds', INTERVAL '10 minutes')
GROUP BY ad_id, country, window_start, window_end;

CREATE MATERIALIZED VIEW ad_1h AS
SELECT ad_id, country, window_start, window_end,
       count(*) FILTER (WHERE event_type = 'click')      AS clicks,
       count(*) FILTER (WHERE event_type = 'impression') AS impressions
FROM HOP(ad_events, ts, INTERVAL '10 seconds', INTERVAL '1 hour')
GROUP BY ad_id, country, window_start, window_end;
