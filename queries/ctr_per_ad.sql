-- Clicks, impressions and click-through rate of each ad, minute by minute. The rate is an expression over two aggregates;
-- an ad without impressions has none. Flink's spelling of the window function works as well as ours.
--
-- One ad over the last ten minutes:
--   SELECT window_start, clicks, impressions, ctr_percent FROM ad_ctr
--   WHERE ad_id = 42 AND window_end > watermark('ad_ctr') - INTERVAL '10 minutes'
--   ORDER BY window_start;
--
-- The best of the last full minute, among ads that were seen at least 100 times:
--   SELECT ad_id, ctr_percent FROM ad_ctr
--   WHERE window_end = closed_window_end('ad_ctr') AND impressions >= 100
--   ORDER BY ctr_percent DESC LIMIT 20;

CREATE MATERIALIZED VIEW ad_ctr AS
SELECT ad_id, window_start, window_end,
       count(*) FILTER (WHERE event_type = 'click')      AS clicks,
       count(*) FILTER (WHERE event_type = 'impression') AS impressions,
       round(100.0 * count(*) FILTER (WHERE event_type = 'click')
             / nullif(count(*) FILTER (WHERE event_type = 'impression'), 0), 2) AS ctr_percent
FROM TABLE(TUMBLE(TABLE ad_events, DESCRIPTOR(ts), INTERVAL '1 minute'))
GROUP BY ad_id, window_start, window_end;
