-- The day so far, minute by minute: windows that share their start, midnight UTC, and end a minute, two minutes, ... a day
-- later. For a budget that runs from midnight, and for a chart that compares today with yesterday at the same hour. The
-- slices are those of one minute, so an event costs what it costs in a window of a minute.
--
-- Today up to now:
--   SELECT country, clicks, impressions FROM country_day
--   WHERE window_end = live_window_end('country_day') ORDER BY clicks DESC;
--
-- The curve of the day:
--   SELECT window_end, clicks FROM country_day WHERE country = 'DE' AND window_start = date_trunc('day', now()) ORDER BY window_end;

CREATE MATERIALIZED VIEW country_day WITH (retention = '2 days') AS
SELECT country, window_start, window_end,
       count(*) FILTER (WHERE event_type = 'click')      AS clicks,
       count(*) FILTER (WHERE event_type = 'impression') AS impressions
FROM CUMULATE(ad_events, ts, INTERVAL '1 minute', INTERVAL '1 day')
GROUP BY country, window_start, window_end;
