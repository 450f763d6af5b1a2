-- The pages of the last hour, by the clock: a minute that is over for an hour is taken back. now() is the clock of the tick, so
-- that windows leave while no event comes; watermark('page_views') in its place would follow the events.
--
--   SELECT * FROM top_pages ORDER BY place;

CREATE MATERIALIZED VIEW page_last_hour AS
SELECT page, window_end, count(*) AS views
FROM TUMBLE(page_views, ts, INTERVAL '1 minute')
WHERE window_end > now() - INTERVAL '1 hour'
GROUP BY page, window_start, window_end;

-- The ten pages with the most views in that hour.
CREATE MATERIALIZED VIEW top_pages AS
SELECT place, page, views
FROM (SELECT page, views, row_number() OVER (ORDER BY views DESC, page) AS place
      FROM (SELECT page, sum(views) AS views FROM page_last_hour GROUP BY page))
WHERE place <= 10;
