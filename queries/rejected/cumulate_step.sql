-- error: the size of CUMULATE must be a multiple of its step: 7m, 1h
CREATE MATERIALIZED VIEW v AS
SELECT window_start, window_end, count(*) AS n
FROM CUMULATE(ad_events, ts, INTERVAL '7 minutes', INTERVAL '1 hour') GROUP BY window_start, window_end;
