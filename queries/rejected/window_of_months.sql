-- error: months and years have no fixed length
CREATE MATERIALIZED VIEW v AS
SELECT window_start, count(*) AS events FROM TUMBLE(ad_events, ts, INTERVAL '1 month') GROUP BY window_start;
