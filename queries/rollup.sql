-- One stream at three resolutions: minutes from the events, five minutes from the minutes, hours from the five minutes.
-- Each view reads the one below it, and a late event corrects all three.
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
