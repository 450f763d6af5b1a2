-- Who clicks where: clicks and impressions by country and device over five minutes, moving by ten seconds, and the three
-- strongest countries of each device in each window, kept ready as a Top-N inside a view.
--
-- Now, by country alone:
--   SELECT country, sum(clicks) AS clicks, sum(impressions) AS impressions FROM country_device
--   WHERE window_end = live_window_end('country_device')
--   GROUP BY country ORDER BY clicks DESC;
--
-- The podium of each device:
--   SELECT device, place, country, clicks FROM country_podium
--   WHERE window_end = closed_window_end('country_device') ORDER BY device, place;

CREATE MATERIALIZED VIEW country_device AS
SELECT country, device, window_start, window_end,
       count(*) FILTER (WHERE event_type = 'click')      AS clicks,
       count(*) FILTER (WHERE event_type = 'impression') AS impressions,
       approx_distinct(user_id)                          AS users
FROM HOP(ad_events, ts, INTERVAL '10 seconds', INTERVAL '5 minutes')
GROUP BY country, device, window_start, window_end;

CREATE MATERIALIZED VIEW country_podium AS
SELECT device, window_end, place, country, clicks
FROM (
  SELECT device, window_end, country, clicks,
         row_number() OVER (PARTITION BY device, window_end ORDER BY clicks DESC, country) AS place
  FROM country_device
) ranked
WHERE place <= 3;
