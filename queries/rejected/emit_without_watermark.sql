-- error: EMIT ON WINDOW CLOSE needs windows over a column with a watermark
CREATE TABLE visits (page VARCHAR, ts TIMESTAMPTZ);
CREATE MATERIALIZED VIEW v AS
SELECT page, window_start, count(*) AS visits FROM TUMBLE(visits, ts, INTERVAL '1 minute') GROUP BY page, window_start EMIT ON WINDOW CLOSE;
