-- The bill: a producer that has not heard that a click was taken writes it again, to whichever partition comes next. Of the
-- records with one event_id that lie less than an hour apart, the earliest counts and the others are duplicates; so each
-- click is paid once. A minute is billed when it is final: no copy that comes later changes it.
--
-- The last minute billed:
--   SELECT ad_id, clicks FROM billed_clicks
--   WHERE window_end = final_window_end('billed_clicks') ORDER BY clicks DESC LIMIT 10;
--
-- What it left out, and which record of the log each of them repeats:
--   SELECT sum(accepted) AS billed, sum(duplicate) AS repeated FROM riverrun.source_partitions WHERE source = 'paid_events';
--   SELECT * FROM riverrun.duplicates ORDER BY arrived_at DESC LIMIT 10;

CREATE SOURCE paid_events (
  event_id VARCHAR, ad_id BIGINT, event_type VARCHAR, country VARCHAR, ts TIMESTAMPTZ,
  WATERMARK FOR ts AS ts - INTERVAL '10 seconds',
  DEDUPLICATE BY (event_id) WITHIN INTERVAL '1 hour'
) WITH (
  connector = 'kafka', topic = 'ad_events',
  properties.bootstrap.server = 'localhost:9092',
  scan.startup.mode = 'earliest'
) FORMAT PLAIN ENCODE JSON;

CREATE MATERIALIZED VIEW billed_clicks AS
SELECT ad_id, window_start, window_end, count(*) AS clicks
FROM TUMBLE(paid_events, ts, INTERVAL '1 minute')
WHERE event_type = 'click'
GROUP BY ad_id, window_start, window_end
EMIT ON WINDOW CLOSE;
