-- Page views and unique visitors per page per minute. approx_distinct keeps a HyperLogLog per page and minute, some
-- hundred bytes however many visitors there are, within about two percent; count(DISTINCT ...) is exact and keeps them all.
--
-- The pages of the last full minute:
--   SELECT page, views, visitors FROM page_minutes
--   WHERE window_end = closed_window_end('page_minutes') ORDER BY visitors DESC LIMIT 20;

CREATE MATERIALIZED VIEW page_minutes AS
SELECT page, window_start, window_end,
       count(*)                 AS views,
       approx_distinct(user_id) AS visitors
FROM TUMBLE(page_views, ts, INTERVAL '1 minute')
GROUP BY page, window_start, window_end;
