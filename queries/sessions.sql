-- Visits to a web site: a user's page views less than 30 minutes apart. A visit is shown while it lasts and grows; a page view
-- that comes late between two visits makes one of them. Nothing changes a visit that the watermark has left behind.
--
-- Who is on the site now:
--   SELECT user_id, window_start, pages FROM visits WHERE window_end > watermark('visits') ORDER BY pages DESC LIMIT 20;

CREATE MATERIALIZED VIEW visits AS
SELECT user_id, window_start, window_end,
       count(*)             AS pages,
       count(DISTINCT page) AS different_pages
FROM SESSION(page_views, ts, INTERVAL '30 minutes')
GROUP BY user_id, window_start, window_end;

-- Visits by the hour in which they ended, each hour once, when none can be added.
CREATE MATERIALIZED VIEW visits_per_hour AS
SELECT window_end AS hour, count(*) AS visits, sum(pages) AS pages, count(*) FILTER (WHERE pages = 1) AS bounces
FROM TUMBLE(visits, window_end, INTERVAL '1 hour')
GROUP BY window_end
EMIT ON WINDOW CLOSE;
