-- error: store cannot be 'other'
CREATE MATERIALIZED VIEW v WITH (store = 'other') AS
SELECT ad_id, window_start, count(*) AS events FROM TUMBLE(ad_events, ts, INTERVAL '1 minute') GROUP BY ad_id, window_start;
