-- A scoreboard that does not flicker: the clicks of each country in the minute that is running and those before it, published
-- every five seconds. A view that is always current changes with every event, and so does all that follows it: dashboards that
-- redraw, clients that subscribe. This one changes twelve times a minute, at once and whole, whatever comes in between; a view
-- over it works only then, and a subscriber is sent what differs from five seconds ago. Event time stands still with it:
-- closed_window_end('scoreboard') is that of what it shows.
--
-- The board:
--   SELECT country, clicks, impressions FROM scoreboard
--   WHERE window_end = live_window_end('scoreboard') ORDER BY clicks DESC;
--
-- Who leads, and every change of it as it is published:
--   SELECT * FROM scoreboard_leader ORDER BY window_end DESC LIMIT 5;
--   COPY (SUBSCRIBE TO scoreboard_leader) TO STDOUT;
--
-- When it was published last:
--   SELECT name, emitted_at FROM riverrun.materialized_views WHERE name = 'scoreboard';

CREATE MATERIALIZED VIEW scoreboard AS
SELECT country, window_start, window_end,
       count(*) FILTER (WHERE event_type = 'click')      AS clicks,
       count(*) FILTER (WHERE event_type = 'impression') AS impressions
FROM TUMBLE(ad_events, ts, INTERVAL '1 minute')
GROUP BY country, window_start, window_end
EMIT EVERY INTERVAL '5 seconds';

CREATE MATERIALIZED VIEW scoreboard_leader AS
SELECT window_end, country, clicks
FROM (
  SELECT window_end, country, clicks, row_number() OVER (PARTITION BY window_end ORDER BY clicks DESC, country) AS place
  FROM scoreboard
)
WHERE place = 1;
