-- error: CUMULATE windows are not kept incrementally yet
CREATE MATERIALIZED VIEW v AS
SELECT window_start, window_end, count(*) AS events
FROM CUMULATE(ad_events, ts, INTERVAL '1 minute', INTERVAL '1 hour') GROUP BY window_start, window_end;
