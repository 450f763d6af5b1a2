-- One stream at three resolutions: minutes from the events, five minutes from the minutes, hours from the five minutes, and the
-- hours of the whole world. Each view is written over the one below it, and a late event corrects all of them. No rows go from
-- view to view: all four are read from the slices of one store, which an event enters once, and one that is made later has all
-- its history at once. If by_country_device.sql is there, that store is the one of country and device:
--   EXPLAIN MATERIALIZED VIEW country_1h;
--   SELECT DISTINCT store, views FROM riverrun.slices;
--
-- Today by the hour:
--   SELECT window_start, country, clicks, impressions FROM country_1h ORDER BY window_start DESC, country LIMIT 24;

CREATE MATERIALIZED VIEW country_1m AS
SELECT country, window_start, window_end,
       count(*) FILTER (WHERE event_type = 'click')      AS clicks,
       count(*) FILTER (WHERE event_type = 'impression') AS impressions
FROM TUMBLE(ad_events, ts, INTERVAL '1 minute')
GROUP BY country, window_start, window_end;

CREATE MATERIALIZED VIEW country_5m AS
SELECT country, window_start, window_end,
       sum(clicks)::bigint      AS clicks,
       sum(impressions)::bigint AS impressions
FROM TUMBLE(country_1m, window_start, INTERVAL '5 minutes')
GROUP BY country, window_start, window_end;

CREATE MATERIALIZED VIEW country_1h AS
SELECT country, window_start, window_end,
       sum(clicks)::bigint      AS clicks,
       sum(impressions)::bigint AS impressions
FROM TUMBLE(country_5m, window_start, INTERVAL '1 hour')
GROUP BY country, window_start, window_end;

CREATE MATERIALIZED VIEW world_1h AS
SELECT window_start, window_end, sum(clicks)::bigint AS clicks, sum(impressions)::bigint AS impressions
FROM country_1h
GROUP BY window_start, window_end;
